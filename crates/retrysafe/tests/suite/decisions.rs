//! The decision, and what asking the store costs (PROTOCOL 3, P5).

use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use proptest::prelude::*;
use retrysafe::{
    Acquired, Algorithm, Begin, Decision, Fingerprint, Found, IdempotencyLayer, Kept, Likeness,
    Scope, decide,
};
use retrysafe_testkit::Verb;

use crate::common::*;

/// A row of the table in PROTOCOL 3, in the words of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Row {
    NoneOrReleased,
    Granted,
    InFlight,
    Lapsed,
    Finished { kept: bool },
}

/// The table, written down apart from the code.
fn table(row: Row, differs: bool) -> &'static str {
    match (row, differs) {
        (Row::Granted, _) => "execute",
        // A claim of a free key is granted; what finds it free was released before (ST4).
        (Row::NoneOrReleased, _) => "nothing",
        (Row::InFlight | Row::Lapsed | Row::Finished { .. }, true) => "mismatch",
        (Row::InFlight, false) => "in flight",
        (Row::Lapsed, false) => "unknown outcome",
        (Row::Finished { kept: true }, false) => "replay",
        (Row::Finished { kept: false }, false) => "unavailable",
    }
}

fn rows() -> impl Strategy<Value = Row> {
    prop_oneof![
        Just(Row::NoneOrReleased),
        Just(Row::Granted),
        Just(Row::InFlight),
        Just(Row::Lapsed),
        any::<bool>().prop_map(|kept| Row::Finished { kept }),
    ]
}

proptest! {
    #[test]
    fn the_decision_is_the_table(
        row in rows(),
        differs: bool,
        attempt in 1..u32::MAX,
        fence: u64,
        vanished: bool,
        left in 1..u64::MAX,
        payload: Vec<u8>,
        head: [u8; 32],
    ) {
        let fingerprint = Fingerprint { algorithm: Algorithm::from_u32(1), head, body: None };
        let acquired = Acquired { attempt, fence, previous_vanished: vanished };
        let (payload, lease_left) = (Bytes::from(payload), Duration::from_nanos(left));
        let begun = match row {
            Row::Granted => Begin::Acquired(acquired),
            Row::NoneOrReleased => Begin::Found(Found::Free),
            Row::InFlight => Begin::Found(Found::InFlight { fingerprint, attempt, lease_left }),
            Row::Lapsed => Begin::Found(Found::Lapsed { fingerprint, attempt }),
            Row::Finished { .. } => {
                Begin::Found(Found::Finished { fingerprint, payload: payload.clone() })
            }
        };
        let likeness = if differs { Likeness::Differs } else { Likeness::Same };
        let kept = match row {
            Row::Finished { kept: false } => Kept::OutcomeOnly,
            _ => Kept::Response,
        };
        let decision = decide(begun, likeness, kept);
        let expected = match table(row, differs) {
            "execute" => Decision::Execute(acquired),
            "nothing" => Decision::Superseded,
            "mismatch" => Decision::Mismatch,
            "in flight" => Decision::InFlight { attempt, lease_left },
            "unknown outcome" => Decision::OutcomeUnknown { attempt },
            "replay" => Decision::Replay(payload),
            _ => Decision::Unavailable(payload),
        };
        prop_assert_eq!(decision, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn d1_an_answer_that_is_not_execute_changes_nothing() {
    let (store, layer) = default_layer();
    let gate = Gate::closed();
    let orders = Guarded::gated(&layer, &gate);
    let first = orders.spawn(order("k", "a"));
    orders.ran(1).await;
    let before = entry(&store, "k").await;
    orders.send(order("k", "a")).await.assert_problem(409, "in_progress");
    orders.send(order("k", "b")).await.assert_problem(422, "key_reused");
    assert_eq!(entry(&store, "k").await, before);
    gate.open();
    first.await.unwrap().assert_first(201, "order 1");
    let before = entry(&store, "k").await;
    orders.send(order("k", "a")).await.assert_replay(201, "order 1");
    orders.send(order("k", "b")).await.assert_problem(422, "key_reused");
    assert_eq!(entry(&store, "k").await, before);
}

#[tokio::test]
async fn d1_a_mismatch_outranks_and_tells_nothing() {
    let (_, layer) = default_layer();
    let gate = Gate::closed();
    let orders = Guarded::gated(&layer, &gate);
    let first = orders.spawn(order("k", "a"));
    orders.ran(1).await;
    let in_flight = orders.send(order("k", "b")).await;
    gate.open();
    first.await.unwrap();
    let finished = orders.send(order("k", "b")).await;
    assert_eq!((in_flight.status, finished.status), (422, 422));
    assert_eq!(in_flight.body, finished.body);
    assert!(!finished.headers.contains_key("retry-after") && !finished.is_replay());
}

#[tokio::test(start_paused = true)]
async fn p5_round_trips() {
    let (store, layer) = default_layer();
    let gate = Gate::closed();
    let orders = Guarded::gated(&layer, &gate);
    let calls = || store.script().all_calls();
    let first = orders.spawn(order("k", "a"));
    orders.ran(1).await;
    assert_eq!(calls(), 1);
    orders.send(order("k", "a")).await.assert_problem(409, "in_progress");
    assert_eq!(calls(), 2, "in flight: one");
    gate.open();
    first.await.unwrap().assert_first(201, "order 1");
    assert_eq!(calls(), 3, "first: begin and complete");
    orders.send(order("k", "a")).await.assert_replay(201, "order 1");
    assert_eq!(calls(), 4, "replay: one");
    orders.send(order("k", "b")).await.assert_problem(422, "key_reused");
    assert_eq!(calls(), 5, "mismatch: one");
    orders.send(keyless()).await;
    assert_eq!(calls(), 5, "no key: none");
    assert_eq!(store.script().calls(Verb::Begin), 4);
}

#[tokio::test]
async fn two_layers_around_one_handler_are_one() {
    // A layer on the router and another on the route, by mistake: the inner one must not find the
    // outer one's claim in flight.
    let (store, outer) = default_layer();
    let sharing = IdempotencyLayer::sharing(outer.engine(), Scope::shared()).build().unwrap();
    let of_its_own = layer(&store).build().unwrap();
    for (key, inner) in [("sharing", sharing), ("of its own", of_its_own)] {
        let handler = Guarded::orders(&inner);
        let inside = handler.clone();
        let orders = Guarded::new(&outer, move |_, request: Given| {
            let inside = inside.clone();
            async move {
                let request = request.map(|body| body.map_err(failure).boxed_unsync());
                inside.call(request).await.map(|body| body.map_err(failure).boxed_unsync())
            }
        });
        let key = key.replace(' ', "-");
        let calls = store.script().all_calls();
        orders.send(order(&key, "a")).await.assert_first(201, "order 1");
        assert_eq!(store.script().all_calls() - calls, 2, "begin and complete, once");
        orders.send(order(&key, "a")).await.assert_replay(201, "order 1");
        orders.send(order(&key, "b")).await.assert_problem(422, "key_reused");
        assert_eq!(handler.runs(), 1, "{key}");
    }
}
