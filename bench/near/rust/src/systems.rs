//! The caches, each with what its users take: String keys, values behind an Arc, which a hit clones
//! (the value itself is not copied). Both hash with foldhash; moka's own default is SipHash.

use std::convert::Infallible;
use std::sync::Arc;

pub type Value = Arc<[u8]>;

pub trait System: Sync + Send {
    const NAME: &'static str;
    fn new(capacity: usize) -> Self;
    fn get(&self, key: &str) -> Option<Value>;
    fn insert(&self, key: &str, value: &[u8]);
    /// `load` is called on a miss only.
    fn get_or_load(&self, key: &str, load: impl FnOnce() -> Value) -> Value;
}

pub struct Moka(moka::sync::Cache<String, Value, foldhash::fast::RandomState>);

impl System for Moka {
    const NAME: &'static str = "moka";

    fn new(capacity: usize) -> Self {
        let builder = moka::sync::Cache::builder().max_capacity(capacity as u64);
        Moka(builder.build_with_hasher(foldhash::fast::RandomState::default()))
    }

    #[inline]
    fn get(&self, key: &str) -> Option<Value> {
        self.0.get(key)
    }

    fn insert(&self, key: &str, value: &[u8]) {
        self.0.insert(key.to_owned(), value.into());
    }

    fn get_or_load(&self, key: &str, load: impl FnOnce() -> Value) -> Value {
        self.0.get_with_by_ref(key, load)
    }
}

type QuickCache = quick_cache::sync::Cache<
    String,
    Value,
    quick_cache::UnitWeighter,
    foldhash::fast::RandomState,
>;

pub struct Quick(QuickCache);

impl System for Quick {
    const NAME: &'static str = "quick_cache";

    fn new(capacity: usize) -> Self {
        Quick(QuickCache::with(
            capacity,
            capacity as u64,
            quick_cache::UnitWeighter,
            foldhash::fast::RandomState::default(),
            Default::default(),
        ))
    }

    #[inline]
    fn get(&self, key: &str) -> Option<Value> {
        self.0.get(key)
    }

    fn insert(&self, key: &str, value: &[u8]) {
        self.0.insert(key.to_owned(), value.into());
    }

    fn get_or_load(&self, key: &str, load: impl FnOnce() -> Value) -> Value {
        match self.0.get_or_insert_with(key, || Ok::<_, Infallible>(load())) {
            Ok(value) => value,
            Err(never) => match never {},
        }
    }
}
