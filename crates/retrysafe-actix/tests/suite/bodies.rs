//! F4 and R4: bodies of all lengths.

use actix_web::{App, Error, HttpResponse, error::PayloadError, http::StatusCode, web};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use retrysafe_actix::{Idempotency, MemoryStore, Scope};
use serde_json::{Value, json};

use crate::support::{self, Runs, app, call, create, idempotency, keyless};

/// A middleware that reads next to nothing ahead.
fn small() -> Idempotency<MemoryStore> {
    Idempotency::builder(MemoryStore::new(), Scope::shared())
        .settings(|settings| settings.inline_body = 1024)
        .build()
        .unwrap()
}

#[actix_web::test]
async fn f4_extractors_read_bodies_that_are_longer_than_what_is_read_ahead() {
    async fn json_in(runs: web::Data<Runs>, it: web::Json<Value>) -> web::Json<Value> {
        let length = it["text"].as_str().unwrap().len();
        web::Json(json!({ "run": runs.count(), "length": length }))
    }
    async fn pieces_in(runs: web::Data<Runs>, mut body: web::Payload) -> web::Json<Value> {
        let mut length = 0;
        while let Some(piece) = body.next().await {
            length += piece.unwrap().len();
        }
        web::Json(json!({ "run": runs.count(), "length": length }))
    }
    let app = app!(
        App::new()
            .app_data(Runs::default().data())
            .route("/json", web::post().to(json_in))
            .route("/pieces", web::post().to(pieces_in))
            .wrap(small())
    );
    let text = "x".repeat(200 * 1024);
    let request = |uri: &str, body: String| {
        keyless(uri, body)
            .insert_header(("idempotency-key", uri))
            .insert_header(("content-type", "application/json"))
    };
    let document = |text: &str| json!({ "text": text }).to_string();

    let first = call!(app, request("/json", document(&text)));
    assert_eq!(first.json(), json!({ "run": 1, "length": text.len() }));
    call!(app, request("/json", document(&text))).replays(&first);
    let first = call!(app, request("/pieces", text.clone()));
    assert_eq!(first.json(), json!({ "run": 2, "length": text.len() }));
    call!(app, request("/pieces", text.clone())).replays(&first);

    let changed = text.replacen('x', "y", 1);
    assert_eq!(call!(app, request("/json", document(&changed))).code(), "key_reused");
    assert_eq!(call!(app, request("/pieces", changed)).code(), "key_reused");
    assert_eq!(call!(app, request("/pieces", text + "x")).code(), "key_reused");
}

#[actix_web::test]
async fn the_limits_of_actix_hold_behind_the_middleware() {
    let runs = Runs::default();
    let app = app!(
        App::new()
            .app_data(runs.data())
            .app_data(web::PayloadConfig::new(4096))
            .route("/", web::post().to(create))
            .wrap(small())
    );
    let too_long = call!(app, support::post("/", vec![b'x'; 8192]));
    assert_eq!(too_long.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(runs.so_far(), 0);
}

#[actix_web::test]
async fn a_body_need_not_be_read() {
    let runs = Runs::default();
    let handler = async |runs: web::Data<Runs>| runs.count().to_string();
    let app =
        app!(App::new().app_data(runs.data()).route("/", web::post().to(handler)).wrap(small()));
    for length in [0, 10, 100_000] {
        let request = || {
            keyless("/", vec![b'x'; length]).insert_header(("idempotency-key", format!("{length}")))
        };
        let first = call!(app, request());
        call!(app, request()).replays(&first);
    }
    assert_eq!(runs.so_far(), 3);
}

#[actix_web::test]
async fn oversize_reruns() {
    // R4: over `max_kept_body`, the client gets all of it, and nothing runs again.
    let bytes = vec![b'x'; 100_000];
    let whole = bytes.clone();
    let in_pieces = async |runs: web::Data<Runs>, bytes: web::Data<Vec<u8>>| {
        runs.count();
        let pieces: Vec<_> =
            bytes.chunks(1000).map(|it| Ok::<_, Error>(Bytes::copy_from_slice(it))).collect();
        HttpResponse::Ok().streaming(stream::iter(pieces))
    };
    let at_once = async |runs: web::Data<Runs>, bytes: web::Data<Vec<u8>>| {
        runs.count();
        bytes.to_vec()
    };
    let runs = Runs::default();
    let idempotency = Idempotency::builder(MemoryStore::new(), Scope::shared())
        .settings(|settings| settings.max_kept_body = 1024)
        .build()
        .unwrap();
    let app = app!(
        App::new()
            .app_data(runs.data())
            .app_data(web::Data::new(bytes))
            .route("/pieces", web::post().to(in_pieces))
            .route("/once", web::post().to(at_once))
            .wrap(idempotency)
    );
    for (run, uri) in ["/pieces", "/once"].into_iter().enumerate() {
        let request = || keyless(uri, "").insert_header(("idempotency-key", uri));
        let first = call!(app, request());
        assert_eq!(first.body, whole, "{uri}");
        let retry = call!(app, request());
        assert_eq!(retry.code(), "response_unavailable");
        assert_eq!(retry.json()["original_status"], 200);
        assert_eq!(runs.so_far() as usize, run + 1);
    }
}

/// PROTOCOL 5: a response that breaks off is ambiguous, whether it says so or is too short.
#[actix_web::test]
async fn a_response_that_breaks_off_is_not_kept() {
    use actix_web::body::SizedStream;

    let broken = async |runs: web::Data<Runs>| {
        runs.count();
        let pieces = [Ok(Bytes::from_static(b"half")), Err(PayloadError::Overflow)];
        HttpResponse::Ok().streaming(stream::iter(pieces))
    };
    let short = async |runs: web::Data<Runs>| {
        runs.count();
        let pieces = stream::iter([Ok::<_, Error>(Bytes::from_static(b"half"))]);
        HttpResponse::Ok().body(SizedStream::new(8, pieces))
    };
    let runs = Runs::default();
    let app = app!(
        App::new()
            .app_data(runs.data())
            .route("/broken", web::post().to(broken))
            .route("/short", web::post().to(short))
            .wrap(idempotency())
    );
    for uri in ["/broken", "/short"] {
        let request = || keyless(uri, "").insert_header(("idempotency-key", uri));
        let failed = call!(app, request());
        assert_eq!((failed.status.as_u16(), failed.code()), (500, "handler_failed".into()));
        // The lease runs out by itself: the work may go on.
        assert_eq!(call!(app, request()).code(), "in_progress");
    }
    assert_eq!(runs.so_far(), 2);
}
