//! What the clients do: keys, values, and the mixes of the field.

use std::fmt;

/// Bytes of a key.
pub const KEY_LEN: usize = 16;

/// Numbers that jump about; a generator for each client.
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

    /// Below one, and not below zero.
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

/// The key of this number. Their order is not that of the numbers, so a sorted store is loaded in random order.
pub fn key(number: u64) -> [u8; KEY_LEN] {
    let mut key = [0; KEY_LEN];
    key[..8].copy_from_slice(&scramble(number).to_be_bytes());
    key[8..].copy_from_slice(&number.to_be_bytes());
    key
}

/// The same number's key where keys are put in their order.
pub fn key_in_order(number: u64) -> [u8; KEY_LEN] {
    let mut key = [0; KEY_LEN];
    key[8..].copy_from_slice(&number.to_be_bytes());
    key
}

/// Fills `value` so that it names its key, and nothing in it compresses.
pub fn fill(value: &mut [u8], number: u64, numbers: &mut Numbers) {
    let mut chunks = value.chunks_exact_mut(8);
    if let Some(first) = chunks.next() {
        first.copy_from_slice(&number.to_le_bytes());
    }
    for chunk in chunks {
        chunk.copy_from_slice(&numbers.next().to_le_bytes());
    }
}

/// Whether these bytes are a value of that key.
pub fn is_value_of(value: &[u8], number: u64, len: usize) -> bool {
    value.len() == len && value.get(..8) == Some(&number.to_le_bytes())
}

/// How keys are chosen.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    Uniform,
    /// As YCSB does: some keys are wanted far more often than others, and these lie anywhere.
    Zipfian,
    /// Those written last more than others.
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

    /// The most wanted is 0.
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

/// One kind of load.
#[derive(Clone)]
pub struct Work {
    pub name: &'static str,
    /// Of a hundred operations; the rest are puts.
    pub gets: u64,
    /// Of a hundred: read, then write the same key.
    pub read_then_write: u64,
    /// Puts are of keys that were not there.
    pub inserts: bool,
    /// Gets are of keys that never were.
    pub missing: bool,
    /// The first client puts all the time, and is not counted.
    pub beside_a_writer: bool,
    pub choice: Choice,
    /// Puts return when they are on stable storage.
    pub durable: bool,
}

const PLAIN: Work = Work {
    name: "",
    gets: 0,
    read_then_write: 0,
    inserts: false,
    missing: false,
    beside_a_writer: false,
    choice: Choice::Uniform,
    durable: false,
};

/// All loads, by the names that RocksDB's `db_bench` and YCSB have made usual.
pub const WORKS: &[Work] = &[
    Work { name: "fillsync", durable: true, ..PLAIN },
    Work { name: "overwrite", ..PLAIN },
    Work { name: "readrandom", gets: 100, ..PLAIN },
    Work { name: "readhot", gets: 100, choice: Choice::Zipfian, ..PLAIN },
    Work { name: "readmissing", gets: 100, missing: true, ..PLAIN },
    Work { name: "readwhilewriting", gets: 100, beside_a_writer: true, ..PLAIN },
    Work { name: "mixed", gets: 50, ..PLAIN },
    Work { name: "ycsb-a", gets: 50, choice: Choice::Zipfian, ..PLAIN },
    Work { name: "ycsb-b", gets: 95, choice: Choice::Zipfian, ..PLAIN },
    Work { name: "ycsb-c", gets: 100, choice: Choice::Zipfian, ..PLAIN },
    Work { name: "ycsb-d", gets: 95, inserts: true, choice: Choice::Latest, ..PLAIN },
    Work { name: "ycsb-f", gets: 50, read_then_write: 50, choice: Choice::Zipfian, ..PLAIN },
];

impl Work {
    /// Whether client number `client` only puts, beside those that are counted.
    pub fn writes_aside(&self, client: u64) -> bool {
        self.beside_a_writer && client == 0
    }

    /// Whether it does nothing but read what is there, so that what lies in memory decides.
    pub fn only_reads(&self) -> bool {
        self.gets == 100 && !self.missing && !self.beside_a_writer
    }
}

/// One operation, on the key of this number.
#[derive(Clone, Copy)]
pub enum Op {
    Get(u64),
    GetMissing(u64),
    Put(u64),
    ReadThenWrite(u64),
}

/// What one client does next, and next, and next.
pub struct Script {
    work: Work,
    zipf: Option<Zipf>,
    pub numbers: Numbers,
    keys: u64,
    /// The next key that it inserts, and by how much it goes on: clients insert in turn.
    next_insert: u64,
    stride: u64,
}

impl Script {
    /// Of client `client` of `clients`; `zipf` where the choice needs one. `inserted` keys were inserted before.
    pub fn new(work: &Work, zipf: Option<&Zipf>, keys: u64, client: u64, clients: u64, seed: u64) -> Self {
        let numbers = Numbers::new(seed ^ (client << 32));
        let gets = if work.writes_aside(client) { 0 } else { work.gets };
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
            // Of what was loaded and what this client has inserted itself, the newest first.
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
