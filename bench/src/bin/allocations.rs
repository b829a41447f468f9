//! Counts allocations. A program of its own, because an allocator that counts takes time, and that
//! is what the other one measures.

use std::process::ExitCode;

use bench::allocations::{Counted, count};

fn main() -> ExitCode {
    let counted = count(|work| {
        let info = allocation_counter::measure(work);
        Counted { allocations: info.count_total, kept_bytes: info.bytes_current }
    });
    match counted {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
