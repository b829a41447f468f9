//! Settings that can't be used are an error of the builder, and never a panic later.

use std::time::Duration;

use http::Method;
use retrysafe::{Engine, Fingerprinter, KeySource, Methods, OnInFlight, Settings};

use crate::common::*;

const FOR_EVER: Duration = Duration::MAX;

/// The setting that a layer can't be built with.
#[track_caller]
fn refused(change: impl FnOnce(&mut Settings)) -> &'static str {
    layer(&store()).settings(change).build().unwrap_err().setting()
}

#[test]
fn durations_without_end_are_refused() {
    assert_eq!(refused(|it| it.lease = FOR_EVER), "max_execution");
    assert_eq!(refused(|it| it.max_execution = FOR_EVER), "retention");
    assert_eq!(refused(|it| it.retention = FOR_EVER), "retention");
    let all = |it: &mut Settings| {
        (it.lease, it.max_execution, it.retention) = (FOR_EVER, FOR_EVER, FOR_EVER);
    };
    assert_eq!(refused(all), "retention");
    assert_eq!(refused(|it| it.store_deadline = FOR_EVER), "store_deadline");
    assert_eq!(refused(|it| it.on_in_flight = OnInFlight::wait(FOR_EVER)), "on_in_flight");
    let engine = Engine::builder(store()).sweep_every(Some(FOR_EVER)).build();
    assert_eq!(engine.unwrap_err().setting(), "sweep_every");
}

#[test]
fn nothing_is_refused_that_is_only_long() {
    const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
    let long = |it: &mut Settings| {
        it.lease = CENTURY / 4;
        it.max_execution = CENTURY / 2;
        it.retention = CENTURY;
        it.store_deadline = CENTURY;
        it.on_in_flight = OnInFlight::wait(CENTURY);
    };
    layer(&store()).settings(long).build().unwrap();
    Engine::builder(store()).sweep_every(Some(CENTURY)).build().unwrap();
}

#[test]
fn k5_methods_that_need_no_key_are_refused() {
    for method in [Method::GET, Method::HEAD, Method::OPTIONS, Method::TRACE, Method::CONNECT] {
        let methods = || Methods::from_iter([Method::POST, method.clone()]);
        assert_eq!(refused(|it| it.methods = methods()), "methods", "{method}");
    }
}

#[test]
fn k8_a_key_made_of_the_content_needs_the_content() {
    let ignoring = |it: &mut Settings| {
        it.key_source = KeySource::Content;
        it.fingerprinter = Fingerprinter::body_ignored();
    };
    assert_eq!(refused(ignoring), "key_source");
}
