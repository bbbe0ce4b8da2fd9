//! Flags, and keys in the order of their use.

use std::collections::HashMap;

pub const KEY_BYTES: usize = 14;

pub struct Flags {
    pub system: String,
    pub operations: Vec<String>,
    pub entries: usize,
    pub value_bytes: usize,
    pub threads: usize,
    pub repetitions: usize,
    pub seconds: f64,
    pub warm_seconds: f64,
    pub sequences: String,
}

impl Flags {
    pub fn from_arguments() -> Self {
        let own: HashMap<String, String> = std::env::args()
            .skip(1)
            .filter_map(|word| {
                let (name, value) = word.strip_prefix("--")?.split_once('=')?;
                Some((name.to_owned(), value.to_owned()))
            })
            .collect();
        let text = |name: &str| own.get(name).unwrap_or_else(|| panic!("--{name}=?")).clone();
        let number = |name: &str| text(name).parse::<usize>().expect("a number");
        Flags {
            system: text("system"),
            operations: text("operations").split(',').map(str::to_owned).collect(),
            entries: number("entries"),
            value_bytes: number("value_bytes"),
            threads: number("threads"),
            repetitions: number("repetitions"),
            seconds: text("seconds").parse().expect("seconds"),
            warm_seconds: text("warm_seconds").parse().expect("seconds"),
            sequences: text("sequences"),
        }
    }
}

pub fn key_of(number: u32) -> String {
    format!("key:{number:010}")
}

#[derive(Default)]
pub struct Sequence {
    numbers: Vec<u32>,
    text: String,
}

impl Sequence {
    pub fn new(numbers: Vec<u32>) -> Self {
        let mut text = String::with_capacity(numbers.len() * KEY_BYTES);
        for &number in &numbers {
            text.push_str(&key_of(number));
        }
        Sequence { numbers, text }
    }

    pub fn read(file: &str) -> Self {
        let bytes = std::fs::read(file).unwrap_or_else(|error| panic!("{file}: {error}"));
        let word = |b: &[u8]| u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        Self::new(bytes.chunks_exact(4).map(word).collect())
    }

    pub fn len(&self) -> usize {
        self.numbers.len()
    }

    #[inline]
    pub fn number(&self, i: usize) -> u32 {
        self.numbers[i]
    }

    #[inline]
    pub fn key(&self, i: usize) -> &str {
        &self.text[i * KEY_BYTES..(i + 1) * KEY_BYTES]
    }

    /// Of the numbers of `count` keys from `begin` on, going round.
    pub fn sum(&self, begin: usize, count: u64) -> u64 {
        let len = self.len() as u64;
        let whole: u64 = match count / len {
            0 => 0,
            rounds => rounds * self.numbers.iter().map(|&n| u64::from(n)).sum::<u64>(),
        };
        let rest = (0..(count % len) as usize).map(|i| self.numbers[(begin + i) % self.len()]);
        whole + rest.map(u64::from).sum::<u64>()
    }
}
