//! Where the middleware is: around an app, a scope, a resource; inside and outside of others.

use actix_web::{App, HttpResponse, dev::Service as _, http::header::HeaderValue, web};
use retrysafe_actix::{Engine, Idempotency, MemoryStore, Scope, background};

use crate::support::{self, Runs, app, call, create, idempotency, keyless};

/// Actix leaves the path as it is; this is to stay so.
#[actix_web::test]
async fn nested_route_collision() {
    let runs = Runs::default();
    let store = MemoryStore::new();
    let idempotency = || Idempotency::builder(store.clone(), Scope::shared()).build().unwrap();
    let inside = |path: &str| {
        web::scope(path)
            .service(web::resource("/create").route(web::post().to(create)))
            .wrap(idempotency())
    };
    let app = app!(
        App::new()
            .app_data(runs.data())
            .service(inside("/orders"))
            .service(inside("/refunds"))
            .service(web::scope("/deep").service(inside("/er")))
    );
    let first = call!(app, support::post("/orders/create", "one"));
    assert_eq!(first.status.as_u16(), 201);
    call!(app, support::post("/orders/create", "one")).replays(&first);
    for other in ["/refunds/create", "/deep/er/create"] {
        assert_eq!(call!(app, support::post(other, "one")).code(), "key_reused", "{other}");
    }
    // A middleware outside of the nesting sees the same operation.
    let outside = app!(
        App::new()
            .app_data(runs.data())
            .service(web::scope("/orders").route("/create", web::post().to(create)))
            .wrap(idempotency())
    );
    call!(outside, support::post("/orders/create", "one")).replays(&first);
    assert_eq!(runs.so_far(), 1);
}

#[actix_web::test]
async fn every_place_replays() {
    let runs = Runs::default();
    let app = || App::new().app_data(runs.data());
    let in_app = app!(app().wrap(idempotency()).route("/", web::post().to(create)));
    let in_scope =
        app!(app().service(web::scope("").wrap(idempotency()).route("/", web::post().to(create))));
    let in_resource =
        app!(app().service(web::resource("/").wrap(idempotency()).route(web::post().to(create))));
    let in_route = app!(app().route("/", web::post().to(create).wrap(idempotency())));
    macro_rules! replays {
        ($app:expr, $run:expr) => {
            let first = call!($app, support::post("/", "one"));
            call!($app, support::post("/", "one")).replays(&first);
            assert_eq!(runs.so_far(), $run);
        };
    }
    replays!(in_app, 1);
    replays!(in_scope, 2);
    replays!(in_resource, 3);
    replays!(in_route, 4);
}

#[actix_web::test]
async fn a_default_service_may_act_and_is_guarded() {
    let runs = Runs::default();
    let app =
        app!(App::new().app_data(runs.data()).default_service(web::to(create)).wrap(idempotency()));
    let first = call!(app, support::post("/anything", "one"));
    call!(app, support::post("/anything", "one")).replays(&first);
    assert_eq!(runs.so_far(), 1);
}

#[actix_web::test]
async fn what_is_added_inside_is_kept_and_what_is_added_outside_is_not() {
    macro_rules! count {
        ($runs:expr, $name:expr) => {{
            let runs: Runs = $runs.clone();
            move |request, next| {
                let (runs, answer) = (runs.clone(), next.call(request));
                async move {
                    let mut answer = answer.await?;
                    answer.headers_mut().insert($name.parse().unwrap(), runs.count().into());
                    Ok(answer)
                }
            }
        }};
    }
    let (inside, outside) = (Runs::default(), Runs::default());
    let app = app!(
        App::new()
            .route("/", web::post().to(HttpResponse::Ok))
            .wrap_fn(count!(inside, "x-inside"))
            .wrap(idempotency())
            .wrap_fn(count!(outside, "x-outside"))
    );
    let first = call!(app, support::post("/", "one"));
    let retry = call!(app, support::post("/", "one"));
    assert!(retry.is_replay());
    let one = Some(&HeaderValue::from(1));
    assert_eq!((first.headers.get("x-inside"), retry.headers.get("x-inside")), (one, one));
    assert_eq!(retry.header("x-outside"), Some("2"));
}

#[actix_web::test]
async fn middlewares_that_share_an_engine_share_its_records() {
    let engine =
        Engine::builder(MemoryStore::new()).renew_on(background().unwrap()).build().unwrap();
    let idempotency = || Idempotency::sharing(&engine, Scope::shared()).build().unwrap();
    let runs = Runs::default();
    let resource =
        |path: &str| web::resource(path).route(web::post().to(create)).wrap(idempotency());
    let app = app!(
        App::new().app_data(runs.data()).service(resource("/orders")).service(resource("/refunds"))
    );
    call!(app, support::post("/orders", "one"));
    assert_eq!(call!(app, support::post("/refunds", "one")).code(), "key_reused");
    engine.drain().await;
    assert_eq!(runs.so_far(), 1);
}

/// E2: on a worker's own thread a handler could block the renewals.
#[test]
fn e2_an_engine_must_renew_elsewhere() {
    let engine = Engine::builder(MemoryStore::new()).build().unwrap();
    let refused = Idempotency::sharing(&engine, Scope::shared()).build().unwrap_err();
    assert_eq!(refused.setting(), "engine");
    assert!(refused.to_string().contains("renew_on"), "{refused}");
}

#[actix_web::test]
async fn some_paths_only() {
    let runs = Runs::default();
    let orders_only = Idempotency::builder(MemoryStore::new(), Scope::shared())
        .covering(|uri| uri.path().starts_with("/orders"))
        .build()
        .unwrap();
    let app =
        app!(App::new().app_data(runs.data()).default_service(web::to(create)).wrap(orders_only));
    let first = call!(app, support::post("/orders/1", "body"));
    call!(app, support::post("/orders/1", "body")).replays(&first);
    for run in [2, 3] {
        let answer = call!(app, support::post("/search", "body"));
        assert_eq!((answer.json()["run"].as_u64(), answer.is_replay()), (Some(run), false));
        assert_eq!(answer.json()["received"], 4);
    }
    assert_eq!(call!(app, keyless("/orders/1", "")).json()["run"], 4);
}
