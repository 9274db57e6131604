//! How a job's input is cut into map tasks: contiguous runs of whole pages, each byte in exactly
//! one.

use distos_abi::{ByteRange, Fault};

/// Bytes of a page.
pub const PAGE_BYTES: u64 = 65_536;
/// The largest input, in bytes.
pub const MAX_INPUT_BYTES: u64 = 1 << 40;
/// The most map tasks of one job.
pub const MAX_MAPS: u32 = 4096;

/// Tasks for each worker: enough for the last ones to end at about the same time.
const TASKS_PER_WORKER: u64 = 4;
/// A smaller task costs more to start than to run.
const MIN_PAGES: u64 = 16;
/// A larger task says too seldom that it is done.
const MAX_PAGES: u64 = 4096;

/// An input that is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    input_bytes: u64,
    pages_per_task: u32,
    maps: u32,
}

impl Cut {
    /// Cuts `input_bytes` into tasks of `pages_per_task` pages; zero leaves the choice to the
    /// scheduler, for this many workers. [`Fault::Malformed`] if the input is empty or too large,
    /// or if there would be more than [`MAX_MAPS`] tasks.
    pub fn new(input_bytes: u64, pages_per_task: u32, workers: u32) -> Result<Cut, Fault> {
        if input_bytes == 0 || input_bytes > MAX_INPUT_BYTES {
            return Err(Fault::malformed(format!(
                "inputBytes is {input_bytes}: 1 to {MAX_INPUT_BYTES}"
            )));
        }
        let pages = input_bytes.div_ceil(PAGE_BYTES);
        let per_task = match u64::from(pages_per_task) {
            0 => chosen(pages, workers),
            asked => asked,
        };
        let maps = pages.div_ceil(per_task);
        if maps > u64::from(MAX_MAPS) {
            let least = pages.div_ceil(u64::from(MAX_MAPS));
            return Err(Fault::malformed(format!(
                "{maps} tasks; at most {MAX_MAPS} are taken: ask for {least} pages a task or more"
            )));
        }
        Ok(Cut { input_bytes, pages_per_task: per_task as u32, maps: maps as u32 })
    }

    /// How long the input is.
    pub fn input_bytes(&self) -> u64 {
        self.input_bytes
    }

    /// How many map tasks there are; at least one.
    pub fn maps(&self) -> u32 {
        self.maps
    }

    /// Pages of every map task but the last, which may have fewer.
    pub fn pages_per_task(&self) -> u32 {
        self.pages_per_task
    }

    /// The bytes of the input that a map task reads; empty for any other index.
    pub fn input(&self, map: u32) -> ByteRange {
        let step = u64::from(self.pages_per_task) * PAGE_BYTES;
        let start = u64::from(map).saturating_mul(step).min(self.input_bytes);
        ByteRange { start, end: start.saturating_add(step).min(self.input_bytes) }
    }
}

fn chosen(pages: u64, workers: u32) -> u64 {
    let tasks = TASKS_PER_WORKER * u64::from(workers.max(1));
    let even = pages.div_ceil(tasks).clamp(MIN_PAGES, MAX_PAGES);
    even.max(pages.div_ceil(u64::from(MAX_MAPS)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_input_of_one_byte_is_one_task() {
        let cut = Cut::new(1, 0, 2).unwrap();
        assert_eq!((cut.maps(), cut.input(0)), (1, ByteRange { start: 0, end: 1 }));
        assert!(Cut::new(0, 0, 2).is_err());
        assert!(Cut::new(MAX_INPUT_BYTES + 1, 0, 2).is_err());
    }

    #[test]
    fn the_default_cut_keeps_all_workers_busy() {
        let cut = Cut::new(256 << 20, 0, 2).unwrap();
        assert_eq!((cut.maps(), cut.pages_per_task()), (8, 512));
        assert_eq!(Cut::new(4 << 30, 0, 2).unwrap().maps(), 16);
        assert_eq!(Cut::new(MAX_INPUT_BYTES, 0, 2).unwrap().maps(), MAX_MAPS);
    }

    #[test]
    fn too_many_tasks_are_refused_with_the_way_out() {
        let fault = Cut::new(1 << 30, 1, 2).unwrap_err();
        assert!(fault.to_string().contains("ask for 4 pages"), "{fault}");
    }

    proptest! {
        #[test]
        fn every_byte_is_read_by_exactly_one_task(
            bytes in 1..=MAX_INPUT_BYTES, pages in 0u32..5000, workers in 0u32..100,
        ) {
            let Ok(cut) = Cut::new(bytes, pages, workers) else {
                prop_assert!(pages > 0);
                return Ok(());
            };
            prop_assert!(cut.maps() >= 1 && cut.maps() <= MAX_MAPS);
            let mut at = 0;
            for map in 0..cut.maps() {
                let input = cut.input(map);
                prop_assert_eq!(input.start, at);
                prop_assert_eq!(input.start % PAGE_BYTES, 0);
                prop_assert!(!input.is_empty());
                at = input.end;
            }
            prop_assert_eq!(at, bytes);
            prop_assert!(cut.input(cut.maps()).is_empty());
            prop_assert!(cut.input(u32::MAX).is_empty());
        }
    }
}
