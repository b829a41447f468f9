//! Any function (PROTOCOL 8): `Once`, through its public door.

use std::{collections::HashMap, time::Duration};

use bytes::Bytes;
use http::Response;
use http_body_util::{BodyExt as _, Full};
use retrysafe::{
    Code, Disposition, Inspect as _, MemoryStore, OnUnknownOutcome, Once, OnceBuilder, OnceContext,
    OnceError, OutcomeOverrule, Overrule, Resolution, ResponseBody, Scope, State, Unnamed,
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::common::*;

pub(crate) const SECOND: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Receipt {
    pub(crate) run: usize,
}

/// Why a handler of these tests fails.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Refusal {
    Declined,
    Busy,
    Lost,
}

pub(crate) fn on(store: &TestStore) -> OnceBuilder<TestStore> {
    Once::builder(store.clone())
}

/// A store, and a `Once` with every default on it.
pub(crate) fn default_once() -> (TestStore, Once<TestStore>) {
    let store = store();
    let once = on(&store).build().unwrap();
    (store, once)
}

pub(crate) async fn state_of(once: &Once<TestStore>, key: &str) -> &'static str {
    let id = once.operation_id(&Scope::shared(), key).unwrap();
    match once.engine().store().get(&id).await.unwrap().map(|entry| entry.state) {
        None => "absent",
        Some(State::InFlight { .. }) => "in flight",
        Some(State::Lapsed) => "lapsed",
        Some(State::Finished { .. }) => "finished",
        Some(State::Released) => "released",
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self:?}")
    }
}

impl std::error::Error for Refusal {}

/// A job that counts its executions and answers with their number.
macro_rules! order {
    ($once:expr, $runs:expr, $key:expr, $input:expr) => {{
        let counted = $runs.clone();
        $once.run("order", &Scope::shared(), $key, &$input, move |_| async move {
            Ok::<_, Refusal>(Receipt { run: counted.more() })
        })
    }};
}

/// A job that fails so.
macro_rules! failing {
    ($once:expr, $runs:expr, $key:expr, $refusal:expr) => {{
        let counted = $runs.clone();
        $once.run("order", &Scope::shared(), $key, &"a", move |_| async move {
            counted.more();
            Err::<Receipt, _>($refusal)
        })
    }};
}

pub(crate) use {failing, order};

#[track_caller]
pub(crate) fn assert_code<T: std::fmt::Debug, E: std::fmt::Debug>(
    result: Result<T, OnceError<E>>,
    code: Code,
) -> OnceError<E> {
    let error = result.unwrap_err();
    assert_eq!(error.code(), Some(code), "{error:?}");
    error
}

#[tokio::test]
async fn o1_the_first_runs_and_a_retry_gets_its_value() {
    let (_, once) = default_once();
    let runs = Count::default();
    let first = order!(once, runs, "k", "a").await.unwrap();
    assert_eq!((first.value.run, first.replayed, first.attempt), (1, false, Some(1)));
    assert!(first.recorded);
    for _ in 0..3 {
        let retry = order!(once, runs, "k", "a").await.unwrap();
        assert_eq!((retry.value.run, retry.replayed, retry.attempt), (1, true, None));
        assert!(retry.recorded);
    }
    assert_eq!(runs.now(), 1);
    assert_eq!(order!(once, runs, "other", "a").await.unwrap().value.run, 2);
}

#[tokio::test]
async fn o1_name_and_input_tell_a_retry_from_a_reuse() {
    let (_, once) = default_once();
    let runs = Count::default();
    let run = |operation: &str, input: serde_json::Value| {
        let counted = runs.clone();
        once.run(operation, &Scope::shared(), "k", &input, move |_| async move {
            Ok::<_, Refusal>(counted.more())
        })
    };
    let order = || json!({ "item": "book", "cents": 1250 });
    run("order", order()).await.unwrap();
    // JSON, not text: the order of members says nothing.
    let text = r#"{"cents": 1250.0, "item": "book"}"#;
    assert!(run("order", serde_json::from_str(text).unwrap()).await.unwrap().replayed);
    for (operation, input) in [
        ("refund", order()),
        ("", order()),
        ("order\n", order()),
        ("order", json!({ "item": "book", "cents": 1251 })),
        ("order", json!(null)),
    ] {
        let error = assert_code(run(operation, input).await, Code::KeyReused);
        assert!(error.is_definite());
    }
    assert_eq!(runs.now(), 1);
}

#[tokio::test]
async fn o1_a_name_may_be_any_text() {
    let (_, once) = default_once();
    for name in ["", "with spaces / and ä", &"x".repeat(100_000)] {
        let run = || {
            let key = format!("k{}", name.len());
            once.run(name, &Scope::shared(), key.as_str(), &(), |_| async { Ok::<_, Refusal>(7) })
        };
        assert!(!run().await.unwrap().replayed);
        assert!(run().await.unwrap().replayed);
    }
}

#[tokio::test]
async fn o1_large_numbers_in_the_input_are_not_rounded() {
    // `double_counts`: two amounts above 2^53 were the same number.
    let (_, once) = default_once();
    let runs = Count::default();
    let large: u64 = 9_007_199_254_740_993;
    order!(once, runs, "k", large).await.unwrap();
    assert_code(order!(once, runs, "k", large - 1).await, Code::KeyReused);
    assert!(order!(once, runs, "k", large).await.unwrap().replayed);
}

#[tokio::test]
async fn o1_without_a_key_it_is_refused_unless_asked_otherwise() {
    let (store, once) = default_once();
    let runs = Count::default();
    let error = assert_code(order!(once, runs, None, "a").await, Code::MissingKey);
    assert!(error.is_definite());
    assert_eq!(runs.now(), 0);

    let once = on(&store).unnamed(Unnamed::RunUnprotected).build().unwrap();
    for run in [1, 2] {
        let done = order!(once, runs, None, "a").await.unwrap();
        assert_eq!((done.value.run, done.replayed, done.attempt), (run, false, None));
        assert!(!done.recorded);
    }
    assert_eq!(store.count().await.unwrap().finished, 0);
    // An error means what it means with a key.
    let failed = failing!(once, runs, None, Refusal::Busy).release_if(|_| true).await;
    assert!(failed.unwrap_err().is_definite());
    assert!(!failing!(once, runs, None, Refusal::Lost).await.unwrap_err().is_definite());
}

#[tokio::test]
async fn e3_a_run_without_a_key_is_an_operation_of_its_own() {
    let once = Once::builder(store()).unnamed(Unnamed::RunUnprotected).build().unwrap();
    let told = || async {
        let told = once.run("order", &Scope::shared(), None, &(), |context: OnceContext| {
            let told = (context.number(), context.fence(), context.previous_vanished());
            let derived = context.derive_key("charge");
            assert!(context.attempt().is_none());
            async move { Ok::<_, Refusal>((told, derived)) }
        });
        told.await.unwrap().value
    };
    let (one, other) = (told().await, told().await);
    assert_eq!(one.0, (0, 0, false));
    assert_ne!(one.1, other.1);
}

#[tokio::test]
async fn o1_a_bad_key_is_never_ignored() {
    // `long_key_unprotected`
    let once = Once::builder(store()).unnamed(Unnamed::RunUnprotected).build().unwrap();
    let runs = Count::default();
    for bad in [&"k".repeat(256), "", "caf\u{e9}", "a\nb"] {
        let error = assert_code(order!(once, runs, bad, "a").await, Code::InvalidKey);
        assert!(error.is_definite());
    }
    assert_eq!(runs.now(), 0);
}

#[tokio::test]
async fn s2_scopes_and_namespaces_are_apart() {
    let (store, once) = default_once();
    let other = on(&store).namespace("other").build().unwrap();
    let run = |once: &Once<TestStore>, scope: &str| {
        once.run("order", &Scope::from_bytes(scope), "k", "a", |_| async { Ok::<_, Refusal>(()) })
    };
    for first in [run(&once, "alice"), run(&once, "bob"), run(&other, "alice")] {
        assert!(!first.await.unwrap().replayed);
    }
    assert!(run(&once, "alice").await.unwrap().replayed);
}

#[tokio::test]
async fn o2_an_error_is_ambiguous_by_default() {
    let (_, once) = default_once();
    let runs = Count::default();
    let error = failing!(once, runs, "k", Refusal::Lost).await.unwrap_err();
    assert!(!error.is_definite());
    let OnceError::Failed { error, disposition, replayed, .. } = error else { panic!("{error:?}") };
    assert_eq!((error, disposition, replayed), (Refusal::Lost, Disposition::GiveUp, false));
    assert_eq!(state_of(&once, "k").await, "lapsed");
    // Reexecute, the default: the next one is told.
    let told = once.run("order", &Scope::shared(), "k", "a", |context: OnceContext| async move {
        Ok::<_, Refusal>((context.number(), context.previous_vanished(), context.fence() > 0))
    });
    assert_eq!(told.await.unwrap().value, (2, true, true));
}

#[tokio::test]
async fn o2_a_released_error_frees_the_key() {
    let (_, once) = default_once();
    let runs = Count::default();
    let released = failing!(once, runs, "k", Refusal::Busy);
    let error = released.release_if(|it| *it == Refusal::Busy).await.unwrap_err();
    assert!(error.is_definite());
    assert_eq!(error.into_handler_error(), Some(Refusal::Busy));
    assert_eq!(state_of(&once, "k").await, "released");
    let told =
        once.run("order", &Scope::shared(), "k", "another", |context: OnceContext| async move {
            Ok::<_, Refusal>((context.number(), context.previous_vanished()))
        });
    assert_eq!(told.await.unwrap().value, (2, false));
}

#[tokio::test]
async fn o2_a_kept_error_answers_every_retry() {
    let (_, once) = default_once();
    let runs = Count::default();
    let declined = || {
        // Both say yes: what is kept never runs again.
        let run = failing!(once, runs, "k", Refusal::Declined);
        run.release_if(|_| true).keep_if(|it| *it == Refusal::Declined)
    };
    for expected in [false, true, true] {
        let error = declined().await.unwrap_err();
        assert!(error.is_definite());
        let OnceError::Failed { error, disposition, replayed, .. } = error else {
            panic!("{error:?}")
        };
        assert_eq!((error, disposition), (Refusal::Declined, Disposition::Keep));
        assert_eq!(replayed, expected);
    }
    assert_eq!(runs.now(), 1);
    // Who does not ask for kept errors can't read one, and runs nothing.
    let error = order!(once, runs, "k", "a").await.unwrap_err();
    assert!(matches!(error, OnceError::Undecodable(_)), "{error:?}");
    assert_eq!(runs.now(), 1);
}

#[tokio::test]
async fn o2_cached_500() {
    // A stored error made every retry useless; freeing on any error charged twice.
    let store = store();
    let once = on(&store).on_unknown_outcome(OnUnknownOutcome::Refuse).build().unwrap();
    let runs = Count::default();
    failing!(once, runs, "k", Refusal::Lost).await.unwrap_err();
    let error = assert_code(order!(once, runs, "k", "a").await, Code::OutcomeUnknown);
    assert!(!error.is_definite());
    assert_eq!(runs.now(), 1);
    let id = once.operation_id(&Scope::shared(), "k").unwrap();
    let _ = store.resolve(&id, 1, Resolution::DidNotHappen).await.unwrap();
    assert!(!order!(once, runs, "k", "a").await.unwrap().replayed);
}

#[tokio::test]
async fn o3_a_value_of_an_older_type_is_an_error_and_never_runs_again() {
    // `undecodable_deleted`: a record of another version was deleted and run again in an upgrade.
    #[derive(Debug, Serialize, Deserialize)]
    struct Newer {
        run: usize,
        currency: String,
    }
    let (_, once) = default_once();
    let runs = Count::default();
    order!(once, runs, "k", "a").await.unwrap();
    for _ in 0..2 {
        let counted = runs.clone();
        let newer = once.run("order", &Scope::shared(), "k", "a", move |_| async move {
            Ok::<_, Refusal>(Newer { run: counted.more(), currency: "EUR".to_owned() })
        });
        let error = newer.await.unwrap_err();
        assert!(matches!(error, OnceError::Undecodable(_)), "{error:?}");
        assert!(error.is_definite() && error.to_problem().code == Code::ResponseUnavailable);
        assert!(std::error::Error::source(&error).is_some());
    }
    assert_eq!((runs.now(), state_of(&once, "k").await), (1, "finished"));
    // The older build still gets it.
    assert!(order!(once, runs, "k", "a").await.unwrap().replayed);
}

#[tokio::test]
async fn o3_a_value_that_cannot_be_written_is_done_all_the_same() {
    let (_, once) = default_once();
    let runs = Count::default();
    let unwritable = || {
        let counted = runs.clone();
        once.run("order", &Scope::shared(), "k", "a", move |_| async move {
            counted.more();
            // JSON's members are named by strings.
            Ok::<_, Refusal>(HashMap::from([((1, 2), 3)]))
        })
    };
    assert_eq!(unwritable().await.unwrap().value[&(1, 2)], 3);
    for _ in 0..2 {
        let error = assert_code(unwritable().await, Code::ResponseUnavailable);
        assert!(error.is_definite());
    }
    assert_eq!(runs.now(), 1);
}

/// A number whose reading or writing panics, as a `try_from` with an `unwrap` in it does.
#[derive(Debug, PartialEq)]
pub(crate) enum Odd {
    Read(u64),
    Written(u64),
}

impl Serialize for Odd {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let (Self::Read(number) | Self::Written(number)) = self;
        assert!(*self == Self::Read(*number), "a panic on purpose");
        number.serialize(to)
    }
}

impl<'de> Deserialize<'de> for Odd {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let number = u64::deserialize(from)?;
        assert!(number % 2 == 1, "a panic on purpose");
        Ok(Self::Read(number))
    }
}

#[tokio::test]
async fn o3_a_value_that_panics_when_it_is_written_or_read_is_done_all_the_same() {
    let (_, once) = default_once();
    let runs = Count::default();
    for (key, odd) in [("read", (|| Odd::Read(2)) as fn() -> Odd), ("written", || Odd::Written(1))]
    {
        let run = |outcome: fn(Odd) -> Result<Odd, Odd>, key: String| {
            let counted = runs.clone();
            let run = once.run("order", &Scope::shared(), &*key, "a", move |_| async move {
                counted.more();
                outcome(odd())
            });
            run.keep_if(|_| true)
        };
        assert_eq!(run(Ok, format!("{key} value")).await.unwrap().value, odd());
        let error = run(Err, format!("{key} error")).await.unwrap_err();
        assert!(error.is_definite());
        assert_eq!(error.into_handler_error(), Some(odd()));
        for kept in ["value", "error"] {
            let retry = run(Ok, format!("{key} {kept}")).await;
            assert_code(retry, Code::ResponseUnavailable);
        }
    }
    assert_eq!(runs.now(), 4);
}

#[tokio::test]
async fn o3_a_kept_value_whose_reading_panics_is_an_error_and_never_runs_again() {
    let (_, once) = default_once();
    // Kept by a build that could read it.
    for key in ["value", "error"] {
        let kept = once.run("order", &Scope::shared(), key, "a", move |_| async move {
            if key == "value" { Ok(2_u64) } else { Err(2_u64) }
        });
        let _ = kept.keep_if(|_| true).await;
        let retry = once.run("order", &Scope::shared(), key, "a", |_| async {
            if true { panic!("it ran again") } else { Err::<Odd, Odd>(Odd::Read(1)) }
        });
        let retry = retry.keep_if(|_| true).await;
        assert!(matches!(retry, Err(OnceError::Undecodable(_))), "{retry:?}");
    }
}

#[tokio::test]
async fn o3_what_the_first_caller_gets_is_what_a_retry_gets() {
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Partial {
        kept: u8,
        #[serde(skip)]
        forgotten: u8,
    }
    let (_, once) = default_once();
    let run = || {
        once.run("order", &Scope::shared(), "k", "a", |_| async {
            Ok::<_, Refusal>(Partial { kept: 1, forgotten: 2 })
        })
    };
    let first = run().await.unwrap().value;
    assert_eq!(first, Partial { kept: 1, forgotten: 0 });
    assert_eq!(run().await.unwrap().value, first);
}

#[tokio::test]
async fn r4_a_value_that_the_store_cannot_hold() {
    // `oversize_reruns` and `oversize_empties`
    let memory = MemoryStore::builder().max_payload(1024).build().unwrap();
    let small = Once::builder(memory).build().unwrap();
    let (store, _) = default_once();
    let capped = on(&store).settings(|it| it.max_kept_body = 1024).build().unwrap();
    async fn check<S: retrysafe::Store>(once: Once<S>) {
        let runs = Count::default();
        let run = || {
            let counted = runs.clone();
            once.run("order", &Scope::shared(), "k", "a", move |_| async move {
                counted.more();
                Ok::<_, Refusal>("x".repeat(2000))
            })
        };
        assert_eq!(run().await.unwrap().value.len(), 2000);
        for _ in 0..2 {
            assert_code(run().await, Code::ResponseUnavailable);
        }
        assert_eq!(runs.now(), 1);
    }
    check(small).await;
    check(capped).await;
}

#[tokio::test]
async fn an_input_that_cannot_be_written_runs_nothing() {
    let (_, once) = default_once();
    let runs = Count::default();
    let error = order!(once, runs, "k", HashMap::from([((1, 2), 3)])).await.unwrap_err();
    assert!(matches!(error, OnceError::Input(_)) && error.is_definite(), "{error:?}");
    assert_eq!(runs.now(), 0);
}

#[tokio::test]
async fn o4_inside_a_guarded_handler() {
    let store = store();
    let layer = layer(&store).build().unwrap();
    let once = Once::sharing(layer.engine()).build().unwrap();
    let runs = Count::default();
    let (inner, counted) = (once.clone(), runs.clone());
    let orders = Guarded::new(&layer, move |_, request: Given| {
        let (once, counted) = (inner.clone(), counted.clone());
        async move {
            // The same key, for one step of this request.
            let key = request.headers()["idempotency-key"].to_str().unwrap().to_owned();
            let step = once.run("mail", &Scope::shared(), key.as_str(), "a", move |_| async move {
                Ok::<_, Refusal>(counted.more())
            });
            created(step.await.unwrap().value)
        }
    });
    orders.send(crate::common::order("k", "a")).await.assert_first(201, "order 1");
    orders.send(crate::common::order("k", "a")).await.assert_replay(201, "order 1");
    let counted = runs.clone();
    let outside = once.run("mail", &Scope::shared(), "k", "a", move |_| async move {
        Ok::<_, Refusal>(counted.more())
    });
    assert!(outside.await.unwrap().replayed);
    assert_eq!(runs.now(), 1);
}

async fn text(response: Response<ResponseBody<Full<Bytes>>>) -> (u16, bool, String) {
    let (head, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let replayed = head.headers.contains_key("idempotent-replayed");
    (head.status.as_u16(), replayed, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn o4_a_response_is_kept_as_a_layer_would() {
    let (_, once) = default_once();
    let runs = Count::default();
    let respond = |key: &'static str, input: &'static str, status: u16| {
        let counted = runs.clone();
        once.respond("order", &Scope::shared(), key, input, move |_| async move {
            let body = Full::from(format!("order {}", counted.more()));
            let response = Response::builder().status(status).header("location", "/orders/1");
            response.header("set-cookie", "a=b").body(body).unwrap()
        })
    };
    let first = respond("k", "a", 201).await;
    assert!(first.headers().contains_key("set-cookie"));
    assert_eq!(text(first).await, (201, false, "order 1".to_owned()));
    let replay = respond("k", "a", 201).await;
    assert_eq!(replay.headers()["location"], "/orders/1");
    assert!(!replay.headers().contains_key("set-cookie"), "R3");
    assert_eq!(text(replay).await, (201, true, "order 1".to_owned()));

    let reused = respond("k", "b", 201).await;
    assert_eq!(reused.headers()["content-type"], "application/problem+json");
    let (status, replayed, body) = text(reused).await;
    assert_eq!((status, replayed), (422, false));
    assert!(body.contains("key_reused"), "{body}");
    assert_eq!(text(respond("", "a", 201).await).await.0, 400);
    assert_eq!(runs.now(), 1);

    // By the policy: a 500 is ambiguous, a 429 frees the key.
    assert_eq!(text(respond("failed", "a", 500).await).await.0, 500);
    assert_eq!(state_of(&once, "failed").await, "lapsed");
    assert_eq!(text(respond("limited", "a", 429).await).await.0, 429);
    assert_eq!(state_of(&once, "limited").await, "released");
}

#[tokio::test]
async fn o4_a_response_without_a_key_and_one_that_overrules() {
    let (store, refusing) = default_once();
    let unnamed = on(&store).unnamed(Unnamed::RunUnprotected).build().unwrap();
    let runs = Count::default();
    let respond = |once: &Once<TestStore>, key: Option<&'static str>| {
        let counted = runs.clone();
        once.respond("order", &Scope::shared(), key, "a", move |_| async move {
            let mut response = Response::new(Full::from(format!("{}", counted.more())));
            let outcome = Some(OutcomeOverrule::Release);
            response.extensions_mut().insert(Overrule { outcome, retention: None });
            response
        })
    };
    let (status, _, body) = text(respond(&refusing, None).await).await;
    assert_eq!((status, body.contains("missing_key")), (400, true));
    assert_eq!(text(respond(&unnamed, None).await).await, (200, false, "1".to_owned()));
    for run in ["2", "3"] {
        assert_eq!(text(respond(&refusing, Some("k")).await).await, (200, false, run.to_owned()));
    }
}

#[tokio::test]
async fn o4_a_value_is_never_read_as_a_response() {
    let (_, once) = default_once();
    let runs = Count::default();
    order!(once, runs, "k", "a").await.unwrap();
    let respond = once.respond("order", &Scope::shared(), "k", "a", |_| async {
        Response::new(Full::<Bytes>::default())
    });
    assert_eq!(respond.await.status(), 422);
}

#[tokio::test]
async fn s3_debug_shows_no_key_scope_input_or_value() {
    let (_, once) = default_once();
    let scope = Scope::from_bytes("tenant-of-alice");
    let run = || {
        once.run(
            "order",
            &scope,
            "key-of-alice",
            "card-of-alice",
            |context: OnceContext| async move { Ok::<_, Refusal>(format!("{context:?}")) },
        )
    };
    let told = run().await.unwrap().value;
    let problem =
        once.run("order", &scope, "key-of-alice", "other", |_| async { Ok::<_, Refusal>(()) });
    let problem = problem.await.unwrap_err();
    let shown = format!("{once:?} {:?} {told} {problem:?} {problem}", run());
    assert!(!shown.contains("alice"), "{shown}");
}
