//! What is kept, and of what (PROTOCOL 5: the table, R2, R3, R6).

use http::{HeaderMap, Response};
use http_body::Frame;
use retrysafe::{Disposition, Ending, KeptHeaders, OutcomePolicy, StreamedResponse};

use crate::common::*;

/// How an attempt ends, in the words of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ends {
    Answers(u16),
    Panics,
    FailsInside,
    RequestBrokeOff,
    UpstreamBroke,
    ResponseBrokeOff,
    NeverConnected,
}

const KEEP: &str = "finished";
const RELEASE: &str = "released";
/// Given up at once.
const AMBIGUOUS: &str = "lapsed";
/// The lease runs out by itself.
const RUNS_OUT: &str = "in flight";

/// The table, row by row: `standard`, `stripe`, `success_only`.
fn table() -> Vec<(Vec<Ends>, [&'static str; 3])> {
    let answers = |statuses: &[u16]| statuses.iter().copied().map(Ends::Answers).collect();
    vec![
        (answers(&[200, 201, 202, 204, 206]), [KEEP, KEEP, KEEP]),
        (answers(&[301, 302, 303, 304, 400, 402, 403, 404, 410, 422]), [KEEP, KEEP, RELEASE]),
        (answers(&[409, 421, 423]), [RELEASE, KEEP, RELEASE]),
        (answers(&[401, 407, 425, 426, 429]), [RELEASE, RELEASE, RELEASE]),
        (answers(&[408, 500, 501, 502, 503, 504, 599]), [AMBIGUOUS, KEEP, AMBIGUOUS]),
        (answers(&[100, 101, 103]), [AMBIGUOUS; 3]),
        (vec![Ends::Panics, Ends::FailsInside, Ends::RequestBrokeOff], [AMBIGUOUS; 3]),
        (vec![Ends::UpstreamBroke, Ends::ResponseBrokeOff], [RUNS_OUT; 3]),
        (vec![Ends::NeverConnected], [RELEASE; 3]),
    ]
}

async fn end(ends: Ends, request: Given) -> Result<Response<Body>, Failure> {
    let read = read(request).await;
    let ending = |status, ending: Ending| {
        let mut response = self::status(status);
        response.extensions_mut().insert(ending);
        response
    };
    match ends {
        Ends::Answers(status) => Ok(self::status(status)),
        Ends::Panics => panic!("the handler failed"),
        Ends::FailsInside => Err(failure("the inner service failed")),
        // The handler makes light of it.
        Ends::RequestBrokeOff => {
            assert!(read.is_err());
            Ok(status(201))
        }
        Ends::UpstreamBroke => Ok(ending(502, Ending::BrokeOff)),
        Ends::NeverConnected => Ok(ending(502, Ending::NeverStarted)),
        Ends::ResponseBrokeOff => Ok(Response::new(pieces([data("half"), broken()]))),
    }
}

#[tokio::test]
async fn the_table_of_outcomes() {
    let columns = [OutcomePolicy::Standard, OutcomePolicy::Stripe, OutcomePolicy::SuccessOnly];
    for (column, policy) in columns.into_iter().enumerate() {
        for (row, expected) in table() {
            for ends in row {
                let store = store();
                let layer = layer(&store).outcomes(policy.clone()).build().unwrap();
                let orders = Guarded::failing(&layer, move |_, request| end(ends, request));
                let request = if ends == Ends::RequestBrokeOff {
                    with_body("k", pieces([data(vec![7; 100 * 1024]), broken()]))
                } else {
                    order("k", "a")
                };
                let answer = orders.try_call(request).await;
                assert_eq!(answer.is_err(), ends == Ends::FailsInside);
                if let Ok(answer) = answer {
                    let answer = Answer::read(answer).await;
                    let expected = match ends {
                        Ends::Answers(status) => status,
                        Ends::RequestBrokeOff => 201,
                        Ends::UpstreamBroke | Ends::NeverConnected => 502,
                        _ => 500,
                    };
                    assert_eq!(answer.status, expected, "{ends:?}");
                    assert!(
                        !answer.is_replay() && !answer.headers.contains_key("idempotency-status")
                    );
                }
                let policy = &policy;
                let context = format!("{ends:?} under {policy:?}");
                assert_eq!(state(&store, "k").await, expected[column], "{context}");
            }
        }
    }
}

#[tokio::test]
async fn a_predicate_replaces_the_column() {
    let store = store();
    let policy = OutcomePolicy::custom(|head| match head.headers.get("x-final") {
        Some(_) => Disposition::Keep,
        None => Disposition::Release,
    });
    let orders =
        Guarded::new(&layer(&store).outcomes(policy).build().unwrap(), |run, _| async move {
            let response = Response::builder().status(500);
            let response = if run > 1 { response.header("x-final", "1") } else { response };
            response.body(body(format!("try {run}"))).unwrap()
        });
    orders.send(order("k", "a")).await.assert_first(500, "try 1");
    orders.send(order("k", "a")).await.assert_first(500, "try 2");
    orders.send(order("k", "a")).await.assert_replay(500, "try 2");
}

#[tokio::test]
async fn a_predicate_that_panics_leaves_the_outcome_unknown() {
    let store = store();
    let policy = OutcomePolicy::custom(|head| panic!("no idea about {}", head.status));
    let layer = layer(&store).outcomes(policy).build().unwrap();
    let orders = Guarded::new(&layer, |run, request: Given| async move {
        let mut response = created(run);
        if request.headers()["idempotency-key"] == "live" {
            response.extensions_mut().insert(StreamedResponse);
        }
        response
    });
    for (key, text) in [("whole", "order 1"), ("live", "order 2")] {
        // The handler answered; that nobody can judge it is not the client's concern.
        let answer = orders.send(order(key, "a")).await;
        answer.assert_first(201, text);
        assert!(!answer.broke_off);
        assert_eq!(state(&store, key).await, "lapsed");
    }
}

#[tokio::test]
async fn a_release_keeps_its_counters() {
    let (store, layer) = default_layer();
    let orders =
        Guarded::new(
            &layer,
            |run, _| async move { if run < 3 { status(429) } else { created(run) } },
        );
    for run in 1..=3 {
        orders.send(order("k", "a")).await;
        let entry = entry(&store, "k").await.unwrap();
        assert_eq!((entry.attempt, entry.fence, entry.previous_vanished), (run, run.into(), false));
    }
}

#[tokio::test]
async fn r2_only_a_replay_carries_the_marker() {
    let store = store();
    let marker = http::HeaderName::from_static("x-replayed");
    let layer = layer(&store).settings(|it| it.replay_marker = marker).build().unwrap();
    let orders = Guarded::new(&layer, |_, _| async {
        Response::builder()
            .header("x-replayed", "true")
            .header("idempotency-status", "bypassed")
            .body(body("answer"))
            .unwrap()
    });
    let first = orders.send(order("k", "a")).await;
    assert!(!first.headers.contains_key("x-replayed"));
    assert!(!first.headers.contains_key("idempotency-status"));
    let replay = orders.send(order("k", "a")).await;
    assert_eq!(replay.headers["x-replayed"], "true");
    assert!(!replay.headers.contains_key("idempotency-status"));
}

#[tokio::test]
async fn r3_what_belongs_to_one_exchange_is_not_kept() {
    let (_, layer) = default_layer();
    let orders = Guarded::new(&layer, |_, _| async {
        let mut response = Response::builder().status(201);
        for (name, value) in [
            ("connection", "close, x-hop"),
            ("x-hop", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-authenticate", "Basic"),
            ("te", "trailers"),
            ("upgrade", "h2c"),
            ("date", "Sun, 22 Nov 2026 00:00:00 GMT"),
            ("age", "1"),
            ("via", "1.1 a"),
            ("server", "s"),
            ("alt-svc", "clear"),
            ("set-cookie", "a=b"),
            ("www-authenticate", "Basic"),
            ("authentication-info", "x"),
            ("clear-site-data", "x"),
            ("retry-after", "1"),
            ("ratelimit", "1"),
            ("ratelimit-policy", "1"),
            ("x-ratelimit-remaining", "1"),
            ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
            ("tracestate", "a=b"),
            ("server-timing", "a"),
            ("x-request-id", "1"),
            ("content-length", "6"),
            ("content-type", "text/plain"),
            ("etag", "\"1\""),
            ("cache-control", "no-store"),
        ] {
            response = response.header(name, value);
        }
        response.body(body("answer")).unwrap()
    });
    let first = orders.send(order("k", "a")).await;
    assert_eq!(first.headers.len(), 27, "the first answer is untouched");
    let replay = orders.send(order("k", "a")).await;
    let mut names: Vec<_> = replay.headers.keys().map(|name| name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["cache-control", "content-type", "etag", "idempotent-replayed"]);
}

#[tokio::test]
async fn r3_set_cookie_is_kept_where_it_is_asked_for() {
    let store = store();
    let kept = KeptHeaders::default().keep(http::header::SET_COOKIE);
    let layer = layer(&store).settings(|it| it.kept_headers = kept).build().unwrap();
    let orders = Guarded::new(&layer, |_, _| async {
        let response = Response::builder().header("set-cookie", "a=1").header("set-cookie", "b=2");
        response.body(empty()).unwrap()
    });
    orders.send(order("k", "a")).await;
    let replay = orders.send(order("k", "a")).await;
    let cookies: Vec<_> = replay.headers.get_all("set-cookie").iter().collect();
    assert_eq!(cookies, ["a=1", "b=2"]);
}

#[tokio::test]
async fn r6_trailers_are_replayed_apart_from_headers() {
    let (_, layer) = default_layer();
    let orders = Guarded::new(&layer, |_, _| async {
        let mut trailers = HeaderMap::new();
        trailers.append("x-sum", "7".parse().unwrap());
        trailers.append("x-sum", "8".parse().unwrap());
        Response::builder()
            .header("trailer", "x-sum")
            .body(pieces([data("answer"), Ok(Frame::trailers(trailers))]))
            .unwrap()
    });
    for replayed in [false, true] {
        let response = orders.call(order("k", "a")).await;
        // HTTP/1.1 has to know that something comes after the body.
        assert_eq!(http_body::Body::size_hint(response.body()).exact(), None);
        let answer = Answer::read(response).await;
        assert_eq!((answer.is_replay(), answer.text()), (replayed, "answer"));
        let trailers = answer.trailers.unwrap();
        assert_eq!(trailers.get_all("x-sum").iter().collect::<Vec<_>>(), ["7", "8"]);
        assert!(!answer.headers.contains_key("x-sum"));
        assert_eq!(answer.headers["trailer"], "x-sum");
    }
}

#[tokio::test]
async fn r6_trailers_of_which_none_is_kept_are_no_trailers() {
    let (_, layer) = default_layer();
    let orders = Guarded::new(&layer, |_, _| async {
        let mut trailers = HeaderMap::new();
        trailers.insert("server-timing", "db;dur=53".parse().unwrap());
        Response::builder()
            .header("trailer", "server-timing")
            .body(pieces([data("answer"), Ok(Frame::trailers(trailers))]))
            .unwrap()
    });
    let first = orders.send(order("k", "a")).await;
    assert_eq!(first.trailers.unwrap()["server-timing"], "db;dur=53");
    let replay = orders.call(order("k", "a")).await;
    assert_eq!(http_body::Body::size_hint(replay.body()).exact(), Some(6));
    let replay = Answer::read(replay).await;
    replay.assert_replay(200, "answer");
    assert!(replay.trailers.is_none() && !replay.headers.contains_key("trailer"), "{replay:?}");
}

#[tokio::test]
async fn an_answers_length_is_known() {
    let (_, layer) = default_layer();
    let orders = Guarded::orders(&layer);
    for _ in 0..2 {
        let response = orders.call(order("k", "a")).await;
        assert_eq!(http_body::Body::size_hint(response.body()).exact(), Some(7));
    }
    let refused = orders.call(order("k", "b")).await;
    assert!(http_body::Body::size_hint(refused.body()).exact().is_some());
}
