//! Mutations that damage a directory.

use ringcask::testing::sim::Image;

use crate::support::small_stores::Fixture;

const SECTOR: usize = 512;

#[derive(Clone, Debug)]
pub enum Mutation {
    Flip {
        file: usize,
        bit: u64,
    },
    Cut {
        file: usize,
        len: usize,
    },
    /// Replaces four bytes; see [`WORDS`].
    Word {
        file: usize,
        at: usize,
        what: usize,
    },
    /// Replaces a sector with another one of this store, with the same sector at half the store's age, with the sector
    /// of another store, or with copies of one byte.
    Sector {
        file: usize,
        at: usize,
        by: Sector,
    },
    Append {
        file: usize,
        byte: u8,
        count: usize,
    },
    Remove {
        file: usize,
    },
    /// Replaces the file with its version at half the store's age.
    Older {
        file: usize,
    },
    /// Replaces the file with that of another store.
    Other {
        file: usize,
    },
    /// Copies or moves the file to another number.
    Renumbered {
        file: usize,
        number: u64,
        moved: bool,
    },
    /// Adds a file that does not belong to the store, possibly with a similar name.
    Foreign {
        name: String,
        bytes: Vec<u8>,
    },
    Several(Vec<Mutation>),
}

#[derive(Clone, Copy, Debug)]
pub enum Sector {
    Bytes(u8),
    Of { file: usize, at: usize },
    Older,
    Other,
}

/// Number of replacements that `word` offers.
const WORDS: usize = 6;

fn word(old: u32, what: usize) -> u32 {
    match what {
        0 => 0,
        1 => u32::MAX,
        2 => 0x7fff_ffff,
        3 => old.wrapping_add(1),
        4 => old.wrapping_sub(1),
        _ => old.swap_bytes(),
    }
}

/// The store's files. Mutations refer to them by index.
pub fn files(image: &Image) -> Vec<String> {
    image.names().filter(|name| image.bytes(name).is_some_and(|bytes| !bytes.is_empty())).map(String::from).collect()
}

/// All mutations of this store, in a fixed order.
pub fn all(fixture: &Fixture) -> Vec<Mutation> {
    let image = &fixture.image;
    let lens: Vec<usize> = files(image).iter().map(|name| image.bytes(name).map_or(0, <[u8]>::len)).collect();
    let sectors: Vec<(usize, usize)> =
        lens.iter().enumerate().flat_map(|(file, len)| (0..*len).step_by(SECTOR).map(move |at| (file, at))).collect();
    let mut all = Vec::new();
    for (file, &len) in lens.iter().enumerate() {
        all.extend((0..len as u64 * 8).map(|bit| Mutation::Flip { file, bit }));
        all.extend((0..len).map(|len| Mutation::Cut { file, len }));
        let words = (0..len.saturating_sub(3)).step_by(2);
        all.extend(words.flat_map(|at| (0..WORDS).map(move |what| Mutation::Word { file, at, what })));
        for (byte, count) in [(0, 1), (0, 512), (0xff, 7), (1, 5000)] {
            all.push(Mutation::Append { file, byte, count });
        }
        all.extend([Mutation::Remove { file }, Mutation::Older { file }, Mutation::Other { file }]);
        for number in [0, 1, 2, 3, 4, 5, 6, 7, 9, 40, u64::from(u32::MAX), 1 << 40, u64::MAX] {
            all.extend([false, true].map(|moved| Mutation::Renumbered { file, number, moved }));
        }
        // Two files are removed or replaced together.
        for second in file + 1..lens.len() {
            for make in
                [|file| Mutation::Remove { file }, |file| Mutation::Older { file }, |file| Mutation::Other { file }]
            {
                all.push(Mutation::Several(vec![make(file), make(second)]));
                all.push(Mutation::Several(vec![Mutation::Remove { file }, make(second)]));
            }
        }
    }
    for &(file, at) in &sectors {
        all.extend([0, 0xff, 0x5a].map(|byte| Mutation::Sector { file, at, by: Sector::Bytes(byte) }));
        all.extend([Sector::Older, Sector::Other].map(|by| Mutation::Sector { file, at, by }));
        let others = sectors.iter().filter(|other| **other != (file, at));
        all.extend(others.map(|&(from, place)| Mutation::Sector {
            file,
            at,
            by: Sector::Of { file: from, at: place },
        }));
    }
    for (name, bytes) in foreign() {
        all.push(Mutation::Foreign { name, bytes });
    }
    all
}

fn foreign() -> Vec<(String, Vec<u8>)> {
    let names =
        [".DS_Store", "._1.seg", "lost+found", "1.seg", "00000000000000000099.seg.bak", "MANIFEST.old", "x.tmp"];
    let numbered = ["seg", "hint", "seg.tmp", "hint.tmp"].map(|end| format!("{:020}.{end}", 77));
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).chain(numbered).collect();
    let contents = [Vec::new(), vec![0; 100], vec![0xa5; 3000]];
    names.iter().flat_map(|name| contents.iter().map(move |bytes| (name.clone(), bytes.clone()))).collect()
}

impl Mutation {
    /// The damaged directory, or `None` if the mutation changes nothing.
    pub fn apply(&self, fixture: &Fixture, names: &[String]) -> Option<Image> {
        let mut image = fixture.image.clone();
        self.change(&mut image, fixture, names);
        (image != fixture.image).then_some(image)
    }

    fn change(&self, image: &mut Image, fixture: &Fixture, names: &[String]) {
        match self {
            Self::Flip { file, bit } => drop(image.flip_bit(&names[*file], *bit)),
            Self::Cut { file, len } => drop(image.truncate(&names[*file], *len)),
            Self::Word { file, at, what } => {
                image.edit(&names[*file], |bytes| {
                    let place = &mut bytes[*at..*at + 4];
                    let old = u32::from_le_bytes([place[0], place[1], place[2], place[3]]);
                    place.copy_from_slice(&word(old, *what).to_le_bytes());
                });
            }
            Self::Sector { file, at, by } => {
                let name = &names[*file];
                let of = |image: &Image, name: &str, at: usize| {
                    let bytes = image.bytes(name).unwrap_or_default();
                    bytes.get(at..).unwrap_or_default().iter().take(SECTOR).copied().collect::<Vec<u8>>()
                };
                let new = match by {
                    Sector::Bytes(byte) => vec![*byte; SECTOR],
                    Sector::Of { file, at } => of(&fixture.image, &names[*file], *at),
                    Sector::Older => of(&fixture.older, name, *at),
                    Sector::Other => of(&fixture.other, name, *at),
                };
                image.edit(name, |bytes| bytes[*at..].iter_mut().zip(new).for_each(|(old, new)| *old = new));
            }
            Self::Append { file, byte, count } => {
                image.edit(&names[*file], |bytes| bytes.resize(bytes.len() + count, *byte));
            }
            Self::Remove { file } => drop(image.remove(&names[*file])),
            Self::Older { file } => replace(image, &fixture.older, &names[*file]),
            Self::Other { file } => replace(image, &fixture.other, &names[*file]),
            Self::Renumbered { file, number, moved } => {
                let Some((_, end)) = names[*file].split_once('.') else { return };
                let to = format!("{number:020}.{end}");
                if *moved {
                    image.rename(&names[*file], &to);
                } else {
                    image.duplicate(&names[*file], &to);
                }
            }
            Self::Foreign { name, bytes } => image.insert("/db", name, bytes.clone()),
            Self::Several(mutations) => mutations.iter().for_each(|it| it.change(image, fixture, names)),
        }
    }
}

/// Replaces the file with that of `from`, or removes it if `from` has none.
fn replace(image: &mut Image, from: &Image, name: &str) {
    match from.bytes(name) {
        Some(bytes) => image.insert("/db", name, bytes.to_vec()),
        None => drop(image.remove(name)),
    }
}
