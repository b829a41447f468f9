//! The table.

use std::net::SocketAddr;

use http::Method;

use super::{
    Answer, Place, Profile, Sent, Service,
    races::{Race, races},
    service::LARGE,
};

/// A row of the table.
pub struct Case {
    /// The rule or the lesson that it keeps.
    pub name: &'static str,
    pub(super) profile: Profile,
    place: Option<Place>,
    kind: Kind,
}

enum Kind {
    /// Requests that are sent one after the other, what each gets, and how often the service ran.
    InTurn { steps: Vec<(Sent, Gets)>, runs: u32 },
    /// More than one request at a time.
    Race(Race),
}

/// What comes out.
#[derive(Clone, Debug)]
struct Gets {
    status: u16,
    what: What,
    without: Vec<&'static str>,
    with: Vec<(&'static str, &'static str)>,
}

#[derive(Clone, Debug)]
enum What {
    /// The service's own answer, with this text.
    First(Option<&'static str>),
    /// The same, of so many bytes.
    Long(usize),
    /// What the first step got, marked as a replay.
    Replay,
    /// A problem.
    Problem(&'static str),
}

impl Gets {
    fn new(status: u16, what: What) -> Self {
        Self { status, what, without: Vec::new(), with: Vec::new() }
    }

    fn without(mut self, header: &'static str) -> Self {
        self.without.push(header);
        self
    }

    fn with(mut self, header: &'static str, value: &'static str) -> Self {
        self.with.push((header, value));
        self
    }
}

fn first(status: u16, text: &'static str) -> Gets {
    Gets::new(status, What::First(Some(text)))
}

fn whatever(status: u16) -> Gets {
    Gets::new(status, What::First(None))
}

fn long(status: u16, length: usize) -> Gets {
    Gets::new(status, What::Long(length))
}

fn replay(status: u16) -> Gets {
    Gets::new(status, What::Replay)
}

fn problem(status: u16, code: &'static str) -> Gets {
    Gets::new(status, What::Problem(code))
}

fn post() -> Sent {
    Sent::new(Method::POST, "")
}

fn keyed() -> Sent {
    post().key(b"$")
}

impl Case {
    fn new(name: &'static str, runs: u32) -> Self {
        let kind = Kind::InTurn { steps: Vec::new(), runs };
        Self { name, profile: Profile::Standard, place: None, kind }
    }

    pub(super) fn race(name: &'static str, profile: Profile, race: Race) -> Self {
        Self { name, profile, place: None, kind: Kind::Race(race) }
    }

    fn profile(mut self, profile: Profile) -> Self {
        self.profile = profile;
        self
    }

    fn only(mut self, place: Place) -> Self {
        self.place = Some(place);
        self
    }

    fn step(mut self, sent: Sent, gets: Gets) -> Self {
        match &mut self.kind {
            Kind::InTurn { steps, .. } => steps.push((sent, gets)),
            Kind::Race(_) => unreachable!("a race has no steps"),
        }
        self
    }

    pub(super) fn concerns(&self, place: Place) -> bool {
        self.place.is_none_or(|only| only == place)
    }

    pub(super) async fn check(&self, service: &Service, address: SocketAddr) {
        match &self.kind {
            Kind::InTurn { steps, runs } => {
                self.send_in_turn(steps, address).await;
                assert_eq!(service.runs(self.name), *runs, "how often {} ran", self.name);
            }
            Kind::Race(race) => race(service.clone(), address).await,
        }
    }

    async fn send_in_turn(&self, steps: &[(Sent, Gets)], address: SocketAddr) {
        let mut answers: Vec<Answer> = Vec::new();
        for (number, (sent, gets)) in steps.iter().enumerate() {
            let answer = sent.send(self.name, address).await;
            let at = format!("{}, request {}: {answer:?}", self.name, number + 1);
            assert_eq!(answer.status.as_u16(), gets.status, "{at}");
            for name in &gets.without {
                assert!(!answer.headers.contains_key(*name), "{name} in {at}");
            }
            for (name, value) in &gets.with {
                assert_eq!(answer.headers.get(*name).expect(name), value, "{name} in {at}");
            }
            match gets.what {
                What::First(text) => {
                    assert!(!answer.is_replay(), "{at}");
                    assert!(text.is_none_or(|text| answer.body == text), "{at}");
                }
                What::Long(length) => {
                    assert!(!answer.is_replay(), "{}, request {}", self.name, number + 1);
                    assert_eq!(answer.body.len(), length, "{}, request {}", self.name, number + 1);
                }
                What::Replay => {
                    assert!(answer.is_replay(), "{at}");
                    let first = &answers[0];
                    assert_eq!(answer.body, first.body, "{at}");
                    for name in first.headers.keys().filter(|it| !left_out(it.as_str())) {
                        let values = |of: &Answer| -> Vec<_> {
                            of.headers.get_all(name).iter().cloned().collect()
                        };
                        assert_eq!(values(&answer), values(first), "{name} in {at}");
                    }
                }
                What::Problem(code) => {
                    assert_eq!(answer.code().as_deref(), Some(code), "{at}");
                    assert_eq!(answer.headers["cache-control"], "no-store", "{at}");
                    assert!(!answer.is_replay(), "{at}");
                }
            }
            answers.push(answer);
        }
    }
}

/// R3, and what the server on the way recomputes.
fn left_out(name: &str) -> bool {
    ["connection", "content-length", "date", "set-cookie", "transfer-encoding", "via"]
        .contains(&name)
}

/// Every row, in the order of the protocol, and then the races.
pub fn cases() -> Vec<Case> {
    use Profile as P;
    let mut cases = vec![
        Case::new("r2_a_retry_gets_the_same_answer", 1)
            .step(keyed(), first(201, "order 1").with("location", "/orders/1"))
            .step(keyed(), replay(201).with("idempotent-replayed", "true"))
            .step(keyed(), replay(201)),
        Case::new("k6_no_key", 2)
            .step(post(), first(201, "order 1"))
            .step(post(), first(201, "order 2")),
        Case::new("k6_a_key_is_required", 0)
            .profile(P::KeyRequired)
            .step(post(), problem(400, "missing_key")),
        Case::new("k5_other_methods_pass_through", 2)
            .step(Sent::new(Method::PUT, "").key(b"$"), first(201, "order 1"))
            .step(Sent::new(Method::PUT, "").key(b"$"), first(201, "order 2")),
        Case::new("quoted_key_differs", 1)
            .step(post().key(b"$"), first(201, "order 1"))
            .step(post().key(b"\"$\""), replay(201))
            .step(post().key(b"\"$\";v=1"), replay(201)),
        Case::new("k3_two_lines", 0).step(post().key(b"a").key(b"a"), problem(400, "invalid_key")),
        Case::new("k3_empty", 0).step(post().key(b""), problem(400, "invalid_key")),
        Case::new("k3_an_open_quote", 0).step(post().key(b"\"a"), problem(400, "invalid_key")),
        Case::new("k3_two_in_a_line", 0).step(post().key(b"a, b"), problem(400, "invalid_key")),
        Case::new("long_key_unprotected", 0)
            .step(post().key(&[b'k'; 256]), problem(400, "invalid_key"))
            .step(post().key(b"caf\xc3\xa9"), problem(400, "invalid_key")),
        Case::new("k3_the_longest_key", 1)
            .step(post().key(&[b'k'; 255]), first(201, "order 1"))
            .step(post().key(&[b'k'; 255]), replay(201)),
        Case::new("k7_an_upgrade_bypasses_nothing", 1)
            .step(upgrading(), first(201, "order 1"))
            .step(upgrading(), replay(201)),
        Case::new("other_path_replays", 1)
            .step(keyed(), first(201, "order 1"))
            .step(keyed().body("another order"), problem(422, "key_reused"))
            .step(keyed_at("/below"), problem(422, "key_reused"))
            .step(keyed_at("?query=1"), problem(422, "key_reused"))
            .step(Sent::new(Method::PATCH, "").key(b"$"), problem(422, "key_reused"))
            .step(keyed(), replay(201)),
        Case::new("f4_a_long_body", 1)
            .step(keyed().body(vec![b'a'; 1 << 20]), first(201, "order 1"))
            .step(keyed().body(vec![b'a'; 1 << 20]), replay(201))
            .step(keyed().body(vec![b'b'; 1 << 20]), problem(422, "key_reused"))
            .step(keyed().body(vec![b'a'; (1 << 20) + 1]), problem(422, "key_reused"))
            .step(keyed().body(vec![b'a'; (1 << 20) - 1]), problem(422, "key_reused")),
        Case::new("repeated_headers_lost", 1)
            .step(keyed().answered("headers"), whatever(201).with("etag", "\"1\""))
            .step(keyed().answered("headers"), replay(201)),
        Case::new("set_cookie_reruns", 1)
            .step(
                keyed().answered("secrets"),
                first(201, "order 1").with("set-cookie", "session=1"),
            )
            .step(
                keyed().answered("secrets"),
                replay(201).without("set-cookie").with("cache-control", "no-store"),
            ),
        Case::new("r2_a_first_execution_never_carries_the_marker", 1)
            .step(keyed().answered("marked"), first(201, "order 1").without("idempotency-status"))
            .step(keyed().answered("marked"), replay(201)),
        Case::new("replay_never_engaged", 1)
            .step(keyed_at("/a%2Fb?c=%20d"), first(201, "order 1"))
            .step(keyed_at("/a%2Fb?c=%20d"), replay(201)),
        Case::new("double_counts", 1)
            .profile(P::Json)
            .step(json(r#"{"amount":9007199254740993}"#), first(201, "order 1"))
            .step(json(r#"{"amount":9007199254740993}"#), replay(201))
            .step(json(r#"{"amount":9007199254740992}"#), problem(422, "key_reused")),
        Case::new("oversize_empties", 1)
            .step(keyed().answered("large"), long(201, LARGE))
            .step(keyed().answered("large"), problem(409, "response_unavailable")),
        Case::new("oversize_reruns", 1)
            .step(keyed().answered("large"), whatever(201))
            .step(keyed().answered("large"), problem(409, "response_unavailable"))
            .step(keyed().answered("large"), problem(409, "response_unavailable")),
        Case::new("cached_500", 2)
            .step(keyed().answered("500"), first(500, "order 1"))
            .step(keyed(), first(201, "order 2")),
        Case::new("d3_what_is_unknown_is_refused", 1)
            .profile(P::Refusing)
            .step(keyed().answered("500"), first(500, "order 1"))
            .step(keyed(), problem(409, "outcome_unknown"))
            .step(keyed(), problem(409, "outcome_unknown")),
        Case::new("e5_a_panic", 2)
            .only(Place::InProcess)
            .step(keyed().answered("panic"), problem(500, "handler_failed"))
            .step(keyed(), first(201, "order 2")),
        Case::new("e5_a_panic_is_refused", 1)
            .only(Place::InProcess)
            .profile(P::Refusing)
            .step(keyed().answered("panic"), problem(500, "handler_failed"))
            .step(keyed(), problem(409, "outcome_unknown")),
        Case::new("a_service_that_breaks_off", 1)
            .only(Place::BehindAWire)
            .step(keyed().answered("panic"), problem(502, "upstream_failed"))
            .step(keyed(), problem(409, "in_progress")),
        Case::new("e4_store", 1)
            .step(keyed().answered("store"), first(500, "order 1").without("idempotency-outcome"))
            .step(keyed(), replay(500)),
        Case::new("e4_release", 2)
            .profile(P::Refusing)
            .step(keyed().answered("release"), first(500, "order 1"))
            .step(keyed(), first(201, "order 2")),
        Case::new("e4_unknown", 1)
            .profile(P::Refusing)
            .step(keyed().answered("unknown"), first(500, "order 1"))
            .step(keyed(), problem(409, "outcome_unknown")),
        Case::new("e4_omit_body", 1)
            .step(keyed().answered("omit_body"), first(500, "order 1"))
            .step(keyed(), problem(409, "response_unavailable")),
    ];
    cases.extend(kept().chain(released()).chain(ambiguous()).chain(races()));
    cases
}

fn keyed_at(path: &'static str) -> Sent {
    Sent::new(Method::POST, path).key(b"$")
}

fn json(body: &'static str) -> Sent {
    keyed().header("content-type", "application/json").body(body)
}

fn upgrading() -> Sent {
    keyed().header("connection", "upgrade").header("upgrade", "h2c")
}

/// PROTOCOL 5, `standard`.
fn kept() -> impl Iterator<Item = Case> {
    let statuses = [
        ("keeps_200", "200", 200),
        ("keeps_202", "202", 202),
        ("keeps_204", "204", 204),
        ("keeps_303", "303", 303),
        ("keeps_400", "400", 400),
        ("keeps_402", "402", 402),
        ("keeps_404", "404", 404),
        ("keeps_422", "422", 422),
    ];
    statuses.into_iter().map(|(name, how, status)| {
        Case::new(name, 1)
            .step(keyed().answered(how), whatever(status))
            .step(keyed(), replay(status))
    })
}

fn released() -> impl Iterator<Item = Case> {
    let statuses = [
        ("releases_401", "401", 401),
        ("releases_409", "409", 409),
        ("releases_423", "423", 423),
        ("releases_425", "425", 425),
        ("releases_429", "429", 429),
    ];
    statuses.into_iter().map(|(name, how, status)| {
        // Nothing is unknown: `refuse` does not mind.
        Case::new(name, 2)
            .profile(Profile::Refusing)
            .step(keyed().answered(how), first(status, "order 1"))
            .step(keyed(), first(201, "order 2"))
    })
}

fn ambiguous() -> impl Iterator<Item = Case> {
    let statuses = [
        ("does_not_know_408", "408", 408),
        ("does_not_know_500", "500", 500),
        ("does_not_know_503", "503", 503),
    ];
    statuses.into_iter().map(|(name, how, status)| {
        Case::new(name, 1)
            .profile(Profile::Refusing)
            .step(keyed().answered(how), first(status, "order 1"))
            .step(keyed(), problem(409, "outcome_unknown"))
    })
}
