//! The operations, timed.

use std::hint::black_box;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use crate::systems::{System, Value};
use crate::workload::{key_of, Flags, Sequence, KEY_BYTES};

const BATCH: usize = 256; // operations between two looks at the clock
const SAMPLE_EVERY: usize = 7;
const SAMPLES: usize = 1 << 14;

#[derive(Default)]
struct Tally {
    hits: u64,
    sum: u64,
}

/// What one thread did in one repetition.
struct Part {
    operations: u64,
    elapsed: Duration,
    hits: u64,
    samples: Vec<u32>,
}

/// A stretch of the sequence: for a time, or exactly so many operations.
#[derive(Clone, Copy)]
enum Length {
    Time(Duration),
    Count(usize),
}

pub struct Runner<S> {
    flags: Flags,
    system: Option<S>,
    content: &'static str,
    chunks_used: usize,
    next: Vec<usize>,
}

fn first_word(value: &[u8]) -> u64 {
    u64::from_ne_bytes(value[..8].try_into().expect("8 bytes"))
}

fn set_number(buffer: &mut [u8], number: u32) {
    buffer[..8].copy_from_slice(&u64::from(number).to_ne_bytes());
}

fn clock_pair_ns() -> u32 {
    let mut pairs: Vec<u32> = (0..1001)
        .map(|_| {
            let start = Instant::now();
            start.elapsed().as_nanos() as u32
        })
        .collect();
    pairs.sort_unstable();
    pairs[500]
}

fn resident_bytes() -> f64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("statm");
    let pages: f64 = statm.split(' ').nth(1).expect("resident").parse().expect("a number");
    pages * 4096.0
}

impl<S: System> Runner<S> {
    pub fn run(flags: Flags) {
        let operations = flags.operations.clone();
        let next = vec![0; flags.threads];
        let mut runner =
            Runner::<S> { flags, system: None, content: "", chunks_used: 0, next };
        for operation in &operations {
            match operation.as_str() {
                "memory" => runner.memory(),
                "get_view" | "get_copy" => runner.get(operation, "get"),
                "get_zipf" => runner.get(operation, "zipf"),
                "get_or_load" => runner.get_or_load(),
                "insert" => runner.insert(),
                other => panic!("no operation {other}"),
            }
        }
    }

    fn file(&self, what: &str) -> String {
        format!("{}/{what}-{}.u32", self.flags.sequences, self.flags.entries)
    }

    fn chunk(&self, number: usize) -> Sequence {
        Sequence::read(&format!(
            "{}/load-{}-{number}.u32",
            self.flags.sequences, self.flags.entries
        ))
    }

    fn system(&self) -> &S {
        self.system.as_ref().expect("a system")
    }

    fn buffer(&self) -> Vec<u8> {
        vec![b'v'; self.flags.value_bytes]
    }

    fn put(&self, numbers: impl Iterator<Item = u32>) {
        let mut value = self.buffer();
        for number in numbers {
            set_number(&mut value, number);
            self.system().insert(&key_of(number), &value);
        }
    }

    // All N keys are there: a quarter more room than they need.
    fn hold(&mut self) {
        if self.content != "held" {
            self.system = None;
            self.system = Some(S::new(self.flags.entries * 5 / 4));
            self.put(0..self.flags.entries as u32);
            self.content = "held";
        }
    }

    // As full as it gets with room for N, by what was asked for.
    fn fill(&mut self) {
        if self.content == "full" {
            return;
        }
        self.system = None;
        self.system = Some(S::new(self.flags.entries));
        let order = Sequence::read(&self.file("order"));
        self.put((0..order.len()).map(|i| order.number(i)));
        let chunk = self.chunk(0);
        let (mut tally, mut value) = (Tally::default(), self.buffer());
        for at in 0..chunk.len() {
            load_one(self.system(), &chunk, at, &mut value, &mut tally);
        }
        self.content = "full";
    }

    fn start(&mut self, sequence: &Sequence) {
        let share = sequence.len() / self.flags.threads;
        for (thread, next) in self.next.iter_mut().enumerate() {
            *next = thread * share;
        }
    }

    fn get(&mut self, operation: &str, file: &str) {
        self.hold();
        let sequence = Sequence::read(&self.file(file));
        self.start(&sequence);
        let copy = operation == "get_copy";
        let system = self.system.take().expect("a system");
        self.repeat(operation, &sequence, true, |at, buffer, tally| {
            let Some(value) = system.get(sequence.key(at)) else { return };
            tally.hits += 1;
            if copy {
                buffer.copy_from_slice(&value);
                tally.sum += first_word(black_box(buffer));
            } else {
                tally.sum += first_word(&value);
            }
        });
        self.system = Some(system);
    }

    fn insert(&mut self) {
        self.fill();
        // When they come round again they are long gone: four times what fits.
        let first = 2 * self.flags.entries as u32;
        let count = (4 * self.flags.entries as u32).max(1 << 20);
        let sequence = Sequence::new((first..first + count).collect());
        self.start(&sequence);
        let system = self.system.take().expect("a system");
        self.repeat("insert", &sequence, false, |at, buffer, tally| {
            set_number(buffer, sequence.number(at));
            system.insert(sequence.key(at), buffer);
            tally.sum += u64::from(sequence.number(at));
        });
        self.system = Some(system);
    }

    fn get_or_load(&mut self) {
        self.fill();
        let system = self.system.take().expect("a system");
        for repetition in 0..self.flags.repetitions {
            self.chunks_used += 1;
            let chunk = self.chunk(self.chunks_used);
            self.start(&chunk);
            let share = chunk.len() / self.flags.threads;
            let step = |at: usize, buffer: &mut Vec<u8>, tally: &mut Tally| {
                load_one(&system, &chunk, at, buffer, tally);
            };
            let samples = share / 4 / SAMPLE_EVERY;
            let parts = self.drive(&chunk, Length::Count(share * 3 / 4), samples, &step);
            self.report("get_or_load", repetition, parts);
        }
        self.system = Some(system);
    }

    fn repeat(
        &mut self,
        operation: &str,
        sequence: &Sequence,
        only_hits: bool,
        step: impl Fn(usize, &mut Vec<u8>, &mut Tally) + Sync,
    ) {
        let warm = Length::Time(Duration::from_secs_f64(self.flags.warm_seconds));
        self.drive(sequence, warm, 1, &step);
        for repetition in 0..self.flags.repetitions {
            let length = Length::Time(Duration::from_secs_f64(self.flags.seconds));
            let parts = self.drive(sequence, length, SAMPLES, &step);
            assert!(!only_hits || parts.iter().all(|p| p.hits == p.operations), "misses");
            self.report(operation, repetition, parts);
        }
    }

    /// Runs `step` on all threads; then each samples.
    fn drive(
        &mut self,
        sequence: &Sequence,
        length: Length,
        samples: usize,
        step: &(impl Fn(usize, &mut Vec<u8>, &mut Tally) + Sync),
    ) -> Vec<Part> {
        let barrier = Barrier::new(self.flags.threads);
        let buffer = self.buffer();
        std::thread::scope(|scope| {
            let threads: Vec<_> = self
                .next
                .iter_mut()
                .map(|next| {
                    let (barrier, mut buffer) = (&barrier, buffer.clone());
                    scope.spawn(move || {
                        let mut tally = Tally::default();
                        let mut at = *next;
                        let mut one = |tally: &mut Tally| {
                            step(at, &mut buffer, tally);
                            at += 1;
                            if at == sequence.len() {
                                at = 0;
                            }
                        };
                        barrier.wait();
                        let start = Instant::now();
                        let mut operations = 0;
                        let elapsed = loop {
                            let batch = match length {
                                Length::Time(_) => BATCH,
                                Length::Count(count) => BATCH.min(count - operations),
                            };
                            for _ in 0..batch {
                                one(&mut tally);
                            }
                            operations += batch;
                            let elapsed = start.elapsed();
                            match length {
                                Length::Time(limit) if elapsed >= limit => break elapsed,
                                Length::Count(count) if operations == count => break elapsed,
                                _ => {}
                            }
                        };
                        let (hits, sum) = (tally.hits, tally.sum);
                        barrier.wait();
                        let samples = sample(samples, &mut || one(&mut tally));
                        assert_eq!(sum, sequence.sum(*next, operations as u64), "wrong value");
                        *next = at;
                        Part { operations: operations as u64, elapsed, hits, samples }
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().expect("a thread")).collect()
        })
    }

    fn report(&self, operation: &str, repetition: usize, parts: Vec<Part>) {
        let operations: u64 = parts.iter().map(|p| p.operations).sum();
        let hits: u64 = parts.iter().map(|p| p.hits).sum();
        let seconds = parts.iter().map(|p| p.elapsed.as_secs_f64()).sum::<f64>() / parts.len() as f64;
        let mut samples: Vec<u32> = parts.into_iter().flat_map(|p| p.samples).collect();
        samples.sort_unstable();
        let at = |share: f64| samples[(share * samples.len() as f64) as usize];
        println!(
            "{{\"name\": \"{operation}/{}/{}/{}\", \"run_type\": \"iteration\", \"threads\": {}, \
             \"repetition_index\": {repetition}, \"iterations\": {operations}, \
             \"items_per_second\": {:.0}, \"hit_ratio\": {:.6}, \
             \"p50_ns\": {}, \"p99_ns\": {}, \"p999_ns\": {}}}",
            S::NAME,
            self.flags.entries,
            self.flags.value_bytes,
            self.flags.threads,
            operations as f64 / seconds,
            hits as f64 / operations as f64,
            at(0.5),
            at(0.99),
            at(0.999),
        );
    }

    // Growth of resident memory by a full cache, evictions included, over what lies in it.
    fn memory(&mut self) {
        let count = self.flags.entries as u32 * 5 / 4;
        let before = resident_bytes();
        self.system = Some(S::new(self.flags.entries));
        self.put(0..count);
        let grown = resident_bytes() - before;
        let held = (0..count).filter(|&n| self.system().get(&key_of(n)).is_some()).count();
        println!(
            "{{\"name\": \"memory/{}/{}/{}\", \"run_type\": \"iteration\", \"threads\": 1, \
             \"repetition_index\": 0, \"held_entries\": {held}, \"overhead_bytes\": {:.1}}}",
            S::NAME,
            self.flags.entries,
            self.flags.value_bytes,
            grown / held as f64 - (KEY_BYTES + self.flags.value_bytes) as f64,
        );
    }
}

#[inline]
fn load_one<S: System>(
    system: &S,
    chunk: &Sequence,
    at: usize,
    buffer: &mut [u8],
    tally: &mut Tally,
) {
    let mut loaded = false;
    let value: Value = system.get_or_load(chunk.key(at), || {
        loaded = true;
        set_number(buffer, chunk.number(at));
        Value::from(&*buffer)
    });
    tally.hits += u64::from(!loaded);
    tally.sum += first_word(&value);
}

/// One of SAMPLE_EVERY operations, less what reading the clock takes.
fn sample(count: usize, one: &mut impl FnMut()) -> Vec<u32> {
    let empty = clock_pair_ns();
    (0..count.max(1))
        .map(|_| {
            for _ in 1..SAMPLE_EVERY {
                one();
            }
            let start = Instant::now();
            one();
            (start.elapsed().as_nanos() as u32).saturating_sub(empty)
        })
        .collect()
}
