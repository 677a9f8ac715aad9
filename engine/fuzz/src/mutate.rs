//! Damaged inputs from a seed, for runs without a fuzzer: a bounded number of them, always the same.

use std::{fs, path::Path};

/// One thing that is fed with bytes.
pub struct Target {
    /// Its name, as `cargo fuzz run` takes it.
    pub name: &'static str,
    /// Reads the bytes and panics when something that has to hold does not. Returns whether they were taken for good.
    pub run: fn(&[u8]) -> bool,
    /// Good inputs.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// What came of a bounded run.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// Inputs that were taken for good.
    pub taken: usize,
    /// Inputs that were refused.
    pub refused: usize,
}

impl Target {
    /// Runs the target on its seeds, which all have to be taken, and on `count` damaged ones.
    pub fn run_damaged(&self, count: usize) -> Outcome {
        let seeds = (self.seeds)();
        for (number, seed) in seeds.iter().enumerate() {
            assert!((self.run)(seed), "{}: seed {number} is refused", self.name);
        }
        let mut outcome = Outcome::default();
        let mut chance =
            Chance(self.name.bytes().fold(1u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into())));
        for _ in 0..count {
            let input = damage(&seeds, &mut chance);
            match (self.run)(&input) {
                true => outcome.taken += 1,
                false => outcome.refused += 1,
            }
        }
        outcome
    }

    /// Runs the target on what a fuzzer has found once, the files of `found/<name>` in the folder of the fuzz crate. Returns
    /// how many there are.
    pub fn run_found(&self, fuzz: &Path) -> usize {
        let Ok(files) = fs::read_dir(fuzz.join("found").join(self.name)) else { return 0 };
        let mut count = 0;
        for file in files {
            let input = fs::read(file.expect("a folder that can be read").path());
            (self.run)(&input.expect("a file that can be read"));
            count += 1;
        }
        count
    }
}

struct Chance(u64);

impl Chance {
    fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        let mixed = (self.0 ^ self.0 >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
        mixed ^ mixed >> 33
    }

    fn below(&mut self, end: usize) -> usize {
        (self.number() % end.max(1) as u64) as usize
    }
}

/// Numbers at which things go wrong.
const NUMBERS: [u64; 12] =
    [0, 1, 15, 16, 17, 0x7f, 0xff, 0xffff, 0x7fff_ffff, 0xffff_fff0, 0xffff_ffff, u64::MAX];

fn damage(seeds: &[Vec<u8>], chance: &mut Chance) -> Vec<u8> {
    let mut bytes = seeds[chance.below(seeds.len())].clone();
    for _ in 0..1 + chance.below(4) {
        let at = chance.below(bytes.len() + 1);
        let width = 1 << chance.below(4);
        match chance.below(8) {
            0 if at < bytes.len() => bytes[at] ^= 1 << chance.below(8),
            1 if at < bytes.len() => bytes[at] = chance.number() as u8,
            // A number in its place: most fields lie at multiples of their width.
            2 | 3 => {
                let at = at / width * width;
                if let Some(field) = bytes.get_mut(at..at + width) {
                    let number = NUMBERS[chance.below(NUMBERS.len())].to_le_bytes();
                    field.copy_from_slice(&number[..width]);
                }
            }
            4 => bytes.truncate(at),
            5 => {
                let end = (at + 1 + chance.below(64)).min(bytes.len());
                bytes.drain(at..end);
            }
            6 => {
                let end = (at + 1 + chance.below(64)).min(bytes.len());
                let again = bytes[at..end].to_vec();
                bytes.splice(at..at, again);
            }
            _ => {
                let other = &seeds[chance.below(seeds.len())];
                let from = chance.below(other.len() + 1);
                let end = (from + 1 + chance.below(256)).min(other.len());
                let part = other[from..end].to_vec();
                let replaced = (at + part.len()).min(bytes.len());
                bytes.splice(at..replaced, part);
            }
        }
    }
    bytes
}
