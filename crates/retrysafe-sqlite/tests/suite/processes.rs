//! Several real processes on one file.

use retrysafe_testkit::{ManualClock, processes::Reachable};

use crate::contract::File;

impl Reachable for File {
    fn address(&self) -> String {
        self.path.display().to_string()
    }

    async fn at(address: &str) -> Self {
        Self { path: address.into(), _directory: None, clock: ManualClock::new() }
    }
}

retrysafe_testkit::process_tests!(File, File::new());
