//! The workloads: keys, values, and the usual mixes of operations.

use std::fmt;

/// Length of a key in bytes.
pub const KEY_LEN: usize = 16;

/// A xorshift random number generator. Each client has one.
pub struct Numbers(u64);

impl Numbers {
    pub fn new(seed: u64) -> Self {
        Self(scramble(seed + 1) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(limit)) >> 64) as u64
    }

    /// A number in `0.0..1.0`.
    pub fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

fn scramble(number: u64) -> u64 {
    let mut z = number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// The key of this number. The order of keys differs from the order of numbers, so a sorted store is loaded in random
/// order.
pub fn key(number: u64) -> [u8; KEY_LEN] {
    let mut key = [0; KEY_LEN];
    key[..8].copy_from_slice(&scramble(number).to_be_bytes());
    key[8..].copy_from_slice(&number.to_be_bytes());
    key
}

/// The key of this number, for loads that put keys in their order.
pub fn key_in_order(number: u64) -> [u8; KEY_LEN] {
    let mut key = [0; KEY_LEN];
    key[8..].copy_from_slice(&number.to_be_bytes());
    key
}

/// Fills `value` with the number of its key, followed by incompressible bytes.
pub fn fill(value: &mut [u8], number: u64, numbers: &mut Numbers) {
    let mut chunks = value.chunks_exact_mut(8);
    if let Some(first) = chunks.next() {
        first.copy_from_slice(&number.to_le_bytes());
    }
    for chunk in chunks {
        chunk.copy_from_slice(&numbers.next().to_le_bytes());
    }
}

/// Whether these bytes are a value of this key.
pub fn is_value_of(value: &[u8], number: u64, len: usize) -> bool {
    value.len() == len && value.get(..8) == Some(&number.to_le_bytes())
}

/// The distribution of keys.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    Uniform,
    /// As in YCSB: some keys are far more popular than others, and popular keys are scattered over the key space.
    Zipfian,
    /// The keys written last are the most popular.
    Latest,
}

/// Zipf's distribution with exponent 0.99, by the method of Gray et al. ("Quickly generating billion-record synthetic
/// databases", 1994), which YCSB uses.
#[derive(Clone)]
pub struct Zipf {
    items: f64,
    zeta: f64,
    alpha: f64,
    eta: f64,
}

const THETA: f64 = 0.99;

impl Zipf {
    pub fn new(items: u64) -> Self {
        let zeta_of = |count: u64| (1..=count).map(|rank| (rank as f64).powf(-THETA)).sum::<f64>();
        let (zeta, zeta_two) = (zeta_of(items), zeta_of(2));
        let eta = (1.0 - (2.0 / items as f64).powf(1.0 - THETA)) / (1.0 - zeta_two / zeta);
        Self { items: items as f64, zeta, alpha: 1.0 / (1.0 - THETA), eta }
    }

    /// A random rank. Rank 0 is the most popular.
    fn rank(&self, numbers: &mut Numbers) -> u64 {
        let u = numbers.fraction();
        let uz = u * self.zeta;
        if uz < 1.0 {
            0
        } else if uz < 1.0 + 0.5_f64.powf(THETA) {
            1
        } else {
            (self.items * (self.eta * u - self.eta + 1.0).powf(self.alpha)) as u64
        }
    }
}

/// A workload.
#[derive(Clone)]
pub struct Work {
    pub name: &'static str,
    /// Percentage of gets. What remains of a hundred operations are puts.
    pub gets: u64,
    /// Percentage of operations that read a key and then write it.
    pub read_then_write: u64,
    /// Puts write new keys.
    pub inserts: bool,
    /// Gets read keys that were never put.
    pub missing: bool,
    /// The first client only puts, and its operations are not counted.
    pub with_writer: bool,
    pub choice: Choice,
    /// Puts return when their record is on stable storage.
    pub durable: bool,
}

const PLAIN: Work = Work {
    name: "",
    gets: 0,
    read_then_write: 0,
    inserts: false,
    missing: false,
    with_writer: false,
    choice: Choice::Uniform,
    durable: false,
};

/// All workloads, by their names in RocksDB's `db_bench` and YCSB.
pub const WORKS: &[Work] = &[
    Work { name: "fillsync", durable: true, ..PLAIN },
    Work { name: "overwrite", ..PLAIN },
    Work { name: "readrandom", gets: 100, ..PLAIN },
    Work { name: "readhot", gets: 100, choice: Choice::Zipfian, ..PLAIN },
    Work { name: "readmissing", gets: 100, missing: true, ..PLAIN },
    Work { name: "readwhilewriting", gets: 100, with_writer: true, ..PLAIN },
    Work { name: "mixed", gets: 50, ..PLAIN },
    Work { name: "ycsb-a", gets: 50, choice: Choice::Zipfian, ..PLAIN },
    Work { name: "ycsb-b", gets: 95, choice: Choice::Zipfian, ..PLAIN },
    Work { name: "ycsb-c", gets: 100, choice: Choice::Zipfian, ..PLAIN },
    Work { name: "ycsb-d", gets: 95, inserts: true, choice: Choice::Latest, ..PLAIN },
    Work { name: "ycsb-f", gets: 50, read_then_write: 50, choice: Choice::Zipfian, ..PLAIN },
];

impl Work {
    /// Whether this client is the uncounted writer beside the others.
    pub fn is_background_writer(&self, client: u64) -> bool {
        self.with_writer && client == 0
    }

    /// Whether all operations read existing keys, so that the result depends on the data in memory.
    pub fn only_reads(&self) -> bool {
        self.gets == 100 && !self.missing && !self.with_writer
    }
}

/// One operation on the key of this number.
#[derive(Clone, Copy)]
pub enum Op {
    Get(u64),
    GetMissing(u64),
    Put(u64),
    ReadThenWrite(u64),
}

/// The sequence of operations of one client.
pub struct Script {
    work: Work,
    zipf: Option<Zipf>,
    pub numbers: Numbers,
    keys: u64,
    /// The next key to insert, and the step from one insert to the next. Clients insert interleaved keys.
    next_insert: u64,
    stride: u64,
}

impl Script {
    /// The script of client `client` of `clients`. Needs `zipf` for every distribution but the uniform one. The first
    /// `keys` keys are already loaded.
    pub fn new(work: &Work, zipf: Option<&Zipf>, keys: u64, client: u64, clients: u64, seed: u64) -> Self {
        let numbers = Numbers::new(seed ^ (client << 32));
        let gets = if work.is_background_writer(client) { 0 } else { work.gets };
        Self {
            work: Work { gets, ..work.clone() },
            zipf: zipf.cloned(),
            numbers,
            keys,
            next_insert: keys + client,
            stride: clients,
        }
    }

    pub fn next(&mut self) -> Op {
        let kind = self.numbers.below(100);
        if kind < self.work.gets {
            let number = self.choose();
            return if self.work.missing { Op::GetMissing(number) } else { Op::Get(number) };
        }
        if kind < self.work.gets + self.work.read_then_write {
            return Op::ReadThenWrite(self.choose());
        }
        if self.work.inserts {
            self.next_insert += self.stride;
            return Op::Put(self.next_insert - self.stride);
        }
        Op::Put(self.choose())
    }

    fn choose(&mut self) -> u64 {
        match (self.work.choice, &self.zipf) {
            (Choice::Zipfian, Some(zipf)) => scramble(zipf.rank(&mut self.numbers)) % self.keys,
            // The newest key is the most popular, among the loaded keys and those that this client inserted.
            (Choice::Latest, Some(zipf)) => {
                let back = zipf.rank(&mut self.numbers);
                let inserted = (self.next_insert - self.keys) / self.stride;
                if back < inserted {
                    self.next_insert - (back + 1) * self.stride
                } else {
                    (self.keys - 1).saturating_sub(back - inserted)
                }
            }
            _ => self.numbers.below(self.keys),
        }
    }
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}
