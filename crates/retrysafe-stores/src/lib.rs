//! Opens any store of retrysafe by URL, for binaries and for services that are configured by text.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let opened = retrysafe_stores::open("memory:").await?;
//! println!("keeping records in {}", opened.url); // safe to log
//! let store = opened.store; // what a layer takes
//! # Ok(())
//! # }
//! ```
//!
//! A service that knows its store at build time needs none of this: it depends on the store's crate
//! and opens it by its builder, which has every setting.
//!
//! # Which store
//!
//! Each store but the one in memory is a cargo feature, and none is on by default, so that no driver
//! gets into a lock file unasked.
//!
//! | URL | feature | crash of the service | crash of the store | loss of power |
//! |---|---|---|---|---|
//! | `memory:` | | forgets everything | - | forgets everything |
//! | `sqlite:PATH` | `sqlite` | keeps everything | keeps everything | keeps everything |
//! | `sqlite:PATH?synchronous=normal` | `sqlite` | keeps everything | keeps everything | may lose the last moments, and run an operation again |
//!
//! `memory:` is for tests and for a single process that may run an operation again after it was
//! restarted. `sqlite:` is for one machine, with any number of processes.
//!
//! # URLs
//!
//! - `memory:` takes nothing more.
//! - `sqlite:orders.db` and `sqlite://orders.db` are relative to the working directory;
//!   `sqlite:/var/lib/orders.db` and `sqlite:///var/lib/orders.db` are absolute. `%20` and the like
//!   are decoded, so that any path can be written. `?synchronous=full` (default) or `normal`.

mod error;
mod opened;
mod url;

pub use self::{
    error::OpenError,
    opened::{OpenStore, open},
};
