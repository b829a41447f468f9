//! The answer of a batch endpoint.

use std::collections::BTreeMap;

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use retrysafe::{BatchReport, Disposition, Done, OnceError, ProblemStyle};
use serde::Serialize;
use serde_json::Value;

use crate::respond::Overrule;

/// What came of a batch, as a response: 207, with a status and a result for each item.
///
/// ```
/// use axum::{Json, Router, extract::State, routing::post};
/// use retrysafe_axum::{MemoryStore, MultiStatus, Once, Scope};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// struct Order { key: String, item: String }
///
/// #[derive(Serialize, Deserialize)]
/// enum Refusal { SoldOut }
///
/// async fn create_orders(
///     State(once): State<Once<MemoryStore>>,
///     Json(orders): Json<Vec<Order>>,
/// ) -> MultiStatus<String, Refusal> {
///     let scope = Scope::shared();
///     let placed = once
///         .run_each("create_order", &scope, orders, |order| order.key.clone(), |order, _| async move {
///             Ok(format!("a {} is on its way", order.item))
///         })
///         .keep_if(|refusal| matches!(refusal, Refusal::SoldOut));
///     MultiStatus::new(placed.await)
/// }
///
/// let once = Once::builder(MemoryStore::new()).build()?;
/// let app: Router = Router::new().route("/orders/batch", post(create_orders)).with_state(once);
/// # Ok::<(), retrysafe_axum::ConfigError>(())
/// ```
///
/// The body is a JSON object with the counts `executed`, `replayed` and `failed`, and with `items`,
/// in the order of the request:
///
/// | member of an item | is there |
/// |---|---|
/// | `status` | always: what the item alone would have been answered with |
/// | `value` | if the handler gave one |
/// | `error` | if the handler gave an error that was kept |
/// | `problem` | otherwise; nothing of an error that was not kept is shown |
/// | `retry_after`, in seconds | if the problem says when to try again |
/// | `replayed`: `true` | if it was finished before |
/// | `recorded`: `false` | if a retry may run it again (R7) |
///
/// A client sends the whole batch again until no item has a problem that a retry can settle. Behind a
/// layer it does so with the same `Idempotency-Key`: as long as there is such an item the response
/// [releases](Overrule::release) its key, because to keep it would be to answer for the items as well.
#[derive(Debug)]
pub struct MultiStatus<T, E> {
    report: BatchReport<T, E>,
    problems: ProblemStyle,
}

impl<T, E> MultiStatus<T, E> {
    /// The response to a batch.
    pub fn new(report: BatchReport<T, E>) -> Self {
        Self { report, problems: ProblemStyle::default() }
    }

    /// How problems are rendered: as the `problems` of the `Once`'s settings, if those were changed.
    pub fn problems(mut self, style: ProblemStyle) -> Self {
        self.problems = style;
        self
    }

    fn item(&self, result: &Result<Done<T>, OnceError<E>>) -> String
    where
        T: Serialize,
        E: Serialize,
    {
        let mut item = Members::new();
        let shown = match result {
            Ok(done) => {
                put_flags(&mut item, done.replayed, done.recorded);
                put(&mut item, StatusCode::OK, "value", &done.value)
            }
            Err(
                failed @ OnceError::Failed {
                    error,
                    disposition: Disposition::Keep,
                    replayed,
                    recorded,
                    ..
                },
            ) => {
                put_flags(&mut item, *replayed, *recorded);
                put(&mut item, failed.status(&self.problems), "error", error)
            }
            Err(failed) => {
                self.put_problem(&mut item, failed);
                Ok(())
            }
        };
        if let Err(error) = shown {
            // It was done, and there is no way to say with what result.
            self.put_problem(&mut item, &OnceError::<E>::Undecodable(error));
        }
        object(item)
    }

    fn put_problem(&self, item: &mut Members, failed: &OnceError<E>) {
        let rendered = self.problems.render(&failed.to_problem());
        item.insert("status", rendered.status().as_u16().to_string());
        let problem = serde_json::from_slice(rendered.body())
            .unwrap_or_else(|_| Value::from(String::from_utf8_lossy(rendered.body())));
        item.insert("problem", problem.to_string());
        let after = rendered.headers().get(header::RETRY_AFTER);
        if let Some(seconds) = after.and_then(|it| it.to_str().ok()?.parse::<u64>().ok()) {
            item.insert("retry_after", seconds.to_string());
        }
    }
}

/// Whether every retry of an item gets the same.
fn is_settled<T, E>(result: &Result<Done<T>, OnceError<E>>) -> bool {
    match result {
        Ok(done) => done.recorded,
        Err(OnceError::Failed { disposition, recorded, .. }) => {
            *disposition == Disposition::Keep && *recorded
        }
        Err(other) => other.is_definite(),
    }
}

impl<T: Serialize, E: Serialize> IntoResponse for MultiStatus<T, E> {
    fn into_response(self) -> Response {
        let items: Vec<_> = self.report.items.iter().map(|result| self.item(result)).collect();
        let settled = self.report.items.iter().all(is_settled);
        let BatchReport { executed, replayed, failed, .. } = self.report;
        let body = object(Members::from([
            ("executed", executed.to_string()),
            ("replayed", replayed.to_string()),
            ("failed", failed.to_string()),
            ("items", format!("[{}]", items.join(","))),
        ]));
        let json = HeaderValue::from_static("application/json");
        let headers = [(header::CONTENT_TYPE, json)];
        let response = (StatusCode::MULTI_STATUS, headers, body);
        // E4: a layer would keep a 207, and its items would stay as they are for as long.
        match settled {
            true => response.into_response(),
            false => (Overrule::release(), response).into_response(),
        }
    }
}

/// The members of a JSON object, each as its text. A value is kept as text, and there are some that a
/// [`Value`] does not hold: an integer of 128 bits, a float of 32.
type Members = BTreeMap<&'static str, String>;

fn object(members: Members) -> String {
    let members: Vec<_> = members.iter().map(|(name, text)| format!("\"{name}\":{text}")).collect();
    format!("{{{}}}", members.join(","))
}

fn put(
    item: &mut Members,
    status: StatusCode,
    name: &'static str,
    value: &impl Serialize,
) -> serde_json::Result<()> {
    item.insert(name, serde_json::to_string(value)?);
    item.insert("status", status.as_u16().to_string());
    Ok(())
}

fn put_flags(item: &mut Members, replayed: bool, recorded: bool) {
    if replayed {
        item.insert("replayed", true.to_string());
    }
    if !recorded {
        item.insert("recorded", false.to_string());
    }
}
