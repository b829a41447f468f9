//! The case table: what goes into a front door, what must come out, and how often the handler ran.
//!
//! Every front door for HTTP serves the same [`Service`] and is held to the same [`cases`], over real
//! connections. A door is anything that can put the protocol in front of a service:
//!
//! ```no_run
//! use std::net::SocketAddr;
//! use retrysafe_testkit::doors::{Door, Place, Profile, Service};
//!
//! struct MyServer;
//!
//! impl Door for MyServer {
//!     const PLACE: Place = Place::InProcess;
//!
//!     async fn open(&self, service: Service, profile: Profile) -> SocketAddr {
//!         // Build the layer, let `profile.change(settings)` change its settings, and serve.
//!         # let _ = (service, profile);
//!         todo()
//!     }
//! }
//! # fn todo() -> SocketAddr { ([127, 0, 0, 1], 0).into() }
//!
//! # async fn run() {
//! retrysafe_testkit::doors::all(&MyServer).await;
//! # }
//! ```

mod cases;
mod client;
mod races;
mod service;

use std::{
    collections::{HashMap, hash_map::Entry},
    net::SocketAddr,
    panic::AssertUnwindSafe,
    time::Duration,
};

use futures_util::FutureExt as _;
use retrysafe_core::{Fingerprinter, OnInFlight, OnUnknownOutcome, Settings};

pub use self::{
    cases::{Case, cases},
    client::{Answer, Sent},
    service::{Service, ServiceBody},
};

/// A front door under test.
pub trait Door {
    /// Where the service is, seen from the door.
    const PLACE: Place;

    /// Serves a service behind the door, on a port of its own, for as long as the test runs.
    fn open(&self, service: Service, profile: Profile) -> impl Future<Output = SocketAddr>;
}

/// Where a service is, seen from its door.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the same process: a panic can be caught, and the outcome is overruled by an extension.
    InProcess,
    /// Behind a wire: a panic is a connection that breaks off, and the outcome is overruled by a
    /// header.
    BehindAWire,
}

/// The settings that a case needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Profile {
    /// The defaults.
    Standard,
    /// A request without a key is refused.
    KeyRequired,
    /// Duplicates wait.
    Waiting,
    /// What is unknown never runs again.
    Refusing,
    /// A retry is told by the meaning of its JSON.
    Json,
    /// What is finished answers for two seconds.
    Brief,
}

impl Profile {
    /// Changes the default settings into those of this profile.
    pub fn change(self, settings: &mut Settings) {
        match self {
            Self::Standard => {}
            Self::KeyRequired => settings.require_key = true,
            Self::Waiting => settings.on_in_flight = OnInFlight::wait(Duration::from_secs(60)),
            Self::Refusing => settings.on_unknown_outcome = OnUnknownOutcome::Refuse,
            Self::Json => settings.fingerprinter = Fingerprinter::json(),
            Self::Brief => {
                let second = Duration::from_secs(1);
                (settings.lease, settings.max_execution) = (second, second);
                settings.retention = 2 * second;
            }
        }
    }

    /// The same as flags of `retrysafe proxy`.
    pub fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Standard => &[],
            Self::KeyRequired => &["--require-key"],
            Self::Waiting => &["--on-in-flight", "wait:60s"],
            Self::Refusing => &["--on-unknown-outcome", "refuse"],
            Self::Json => &["--fingerprint", "json"],
            Self::Brief => &["--lease", "1s", "--max-execution", "1s", "--retention", "2s"],
        }
    }
}

/// Holds a door to the whole table.
///
/// # Panics
///
/// If a case comes out otherwise; every case that did is named.
pub async fn all<D: Door>(door: &D) {
    let mut opened = HashMap::new();
    let mut failed = Vec::new();
    for case in cases().into_iter().filter(|case| case.concerns(D::PLACE)) {
        if let Entry::Vacant(vacant) = opened.entry(case.profile) {
            let service = Service::new(D::PLACE);
            let address = door.open(service.clone(), case.profile).await;
            vacant.insert((service, address));
        }
        let (service, address) = &opened[&case.profile];
        let checked = AssertUnwindSafe(case.check(service, *address)).catch_unwind();
        if checked.await.is_err() {
            failed.push(case.name);
        }
    }
    assert!(failed.is_empty(), "these cases came out otherwise: {}", failed.join(", "));
}
