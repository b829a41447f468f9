//! Computes fingerprints: what of a request makes it the same request (F1 to F4).

mod form;
mod head;
mod keyring;
mod multipart;

use std::{borrow::Cow, fmt, iter, sync::Arc};

use http::HeaderName;
use sha2::{Digest as _, Sha256};

use self::keyring::Hash;
pub use self::{head::RequestHead, keyring::Keyring};
use crate::{
    Algorithm, BodyPart, ConfigError, Extent, Fingerprint, JsonPointer, json, preimage::Preimage,
};

/// Computes the [`Fingerprint`] of a request: what tells a retry from a reuse of the key.
///
/// # What is digested
///
/// There are two digests, because a body may be too long to be read before the store is asked (F4).
/// The claim of such a request is made with the head part alone, and its body part is written with
/// the outcome.
///
/// - The **head part** covers the algorithm with its parameters, the method, path and query as the
///   client sent them, the essence of `Content-Type` (lower-cased, without parameters such as
///   `charset` or `boundary`), `Content-Encoding`, and the [chosen headers](Self::with_headers).
///   Each is written with its length before it, so that nothing can move from one to the next.
/// - The **body part** covers the bytes that the mode makes of the body.
///
/// # Modes
///
/// | mode | two bodies are the same if |
/// |---|---|
/// | [`raw`](Self::raw), the default | they have the same bytes |
/// | [`json`](Self::json) | they have the same canonical JSON ([`canonical_json`](crate::canonical_json)) |
/// | [`json_without`](Self::json_without) | the same, but for what the listed pointers name |
/// | [`form`](Self::form) | they are the same URL-encoded form, in whichever order its fields come |
/// | [`multipart`](Self::multipart) | they have the same parts in the same order, whatever the boundary |
/// | [`body_ignored`](Self::body_ignored) | always |
/// | [`custom`](Self::custom) | a function makes the same bytes of them |
///
/// A mode never merges two bodies that may mean different things: a body that it can't read to the
/// last byte (a compressed one, for instance) is fingerprinted raw, and so is one that is longer than
/// what is read up front (F2, F4).
/// The fingerprint says so in its [`Algorithm`], so a raw one never equals one of the mode.
///
/// # Comparing
///
/// A retry is compared with the record's own algorithm (F3), which may be an older one than this
/// service computes now, or the raw one that the first request fell back to:
///
/// ```
/// use http::HeaderMap;
/// use retrysafe_core::{Comparison, Fingerprinter, RequestHead};
///
/// let headers = HeaderMap::new();
/// let head = RequestHead { method: "POST", target: "/orders?draft=1", headers: &headers };
/// let record = Fingerprinter::raw().whole(&head, b"{\"a\":1}");
///
/// let now = Fingerprinter::json();
/// let like_the_record = now.for_algorithm(record.algorithm).expect("raw is always possible");
/// let retry = like_the_record.whole(&head, b"{\"a\":1}");
/// assert_eq!(retry.compare(&record), Comparison::Same);
/// ```
///
/// Cloning it is cheap.
#[derive(Clone)]
pub struct Fingerprinter {
    mode: Mode,
    headers: Arc<[HeaderName]>,
    keyring: Option<Keyring>,
    earlier: Arc<[Fingerprinter]>,
    own: Recipe,
    /// What a body falls back to that the mode can't read.
    raw: Recipe,
}

type Custom = dyn Fn(&RequestHead<'_>, &[u8]) -> Vec<u8> + Send + Sync;

#[derive(Clone)]
enum Mode {
    Raw,
    Json { without: Arc<[JsonPointer]> },
    Form,
    Multipart,
    Ignored,
    Custom { name: Arc<str>, digested: Arc<Custom> },
}

/// An algorithm, with its parameters in full: the algorithm's number holds only 16 bits of them.
#[derive(Clone, Copy)]
struct Recipe {
    algorithm: Algorithm,
    parameters: Option<[u8; 32]>,
}

impl Fingerprinter {
    /// The body's bytes as they came. One pass, nothing is allocated.
    pub fn raw() -> Self {
        Self::new(Mode::Raw)
    }

    /// The body's canonical JSON (RFC 8785), whatever its `Content-Type`. A body that has
    /// [none](crate::canonical_json) is fingerprinted raw.
    pub fn json() -> Self {
        Self::new(Mode::Json { without: Arc::default() })
    }

    /// The body's canonical JSON without what the pointers name: members that change from try to
    /// try, such as a time stamp. There is no built-in list of them (F2).
    ///
    /// # Errors
    ///
    /// If a pointer names the whole body: that is [`body_ignored`](Self::body_ignored).
    pub fn json_without(
        pointers: impl IntoIterator<Item = JsonPointer>,
    ) -> Result<Self, ConfigError> {
        let without: Arc<[_]> = pointers.into_iter().collect();
        if without.iter().any(JsonPointer::is_whole) {
            let problem = "an empty JSON Pointer names the whole body: ignore the body instead";
            return Err(ConfigError::new("fingerprint", problem));
        }
        Ok(Self::new(Mode::Json { without }))
    }

    /// The fields of an `application/x-www-form-urlencoded` body, whatever the order in which they
    /// come. Any other body is fingerprinted raw.
    ///
    /// Pairs of one name keep their order, which says what the first and the last of them are. So
    /// do pairs of one field with brackets: `items[][id]=1&items[][qty]=2` is read in order by those
    /// who read it at all.
    pub fn form() -> Self {
        Self::new(Mode::Form)
    }

    /// The headers and the content of a `multipart` body's parts, in order: clients make a new
    /// boundary for every try. A body that is not multipart, or is in any way unusual (a preamble,
    /// folded headers, bytes after the end), is fingerprinted raw. A part that is itself multipart
    /// is compared with its boundary.
    pub fn multipart() -> Self {
        Self::new(Mode::Multipart)
    }

    /// Nothing of the body: every body is the same.
    pub fn body_ignored() -> Self {
        Self::new(Mode::Ignored)
    }

    pub(crate) fn ignores_body(&self) -> bool {
        matches!(self.mode, Mode::Ignored)
    }

    /// What a function makes of the request. It sees bodies that are read up front; longer ones are
    /// fingerprinted raw (F4).
    ///
    /// The name is kept with every record, as a part of the algorithm: change it when the function
    /// changes, and let [`also_accept`](Self::also_accept) name the earlier one.
    pub fn custom(
        name: &str,
        digested: impl Fn(&RequestHead<'_>, &[u8]) -> Vec<u8> + Send + Sync + 'static,
    ) -> Self {
        Self::new(Mode::Custom { name: name.into(), digested: Arc::new(digested) })
    }

    /// Covers these headers as well, every line of them in its order: for services whose answer
    /// depends on more than path and body, say on `Accept-Language`.
    pub fn with_headers(mut self, names: impl IntoIterator<Item = HeaderName>) -> Self {
        let mut names: Vec<_> = names.into_iter().collect();
        // The list is a set: in another order it is still the same algorithm.
        names.sort_by(|one, other| one.as_str().cmp(other.as_str()));
        names.dedup();
        self.headers = names.into();
        self.settle()
    }

    /// Digests with HMAC-SHA256 instead of SHA-256, so that who reads the store can't find out a
    /// small body by trying.
    pub fn with_keyring(mut self, keyring: Keyring) -> Self {
        self.keyring = Some(keyring);
        self.settle()
    }

    /// Keeps on accepting retries of requests that were fingerprinted by an earlier configuration
    /// of this service (F3). Not needed for modes without parameters.
    pub fn also_accept(mut self, earlier: Self) -> Self {
        self.earlier = self.earlier.iter().cloned().chain([earlier]).collect();
        self
    }

    /// What the records of a body that the mode can read are marked with.
    pub fn algorithm(&self) -> Algorithm {
        self.own.algorithm
    }

    /// The fingerprint of a request whose whole body is at hand.
    pub fn whole(&self, head: &RequestHead<'_>, body: &[u8]) -> Fingerprint {
        let digested = match &self.mode {
            Mode::Ignored => return self.fingerprint(self.own, head, Some(BodyPart::IGNORED)),
            Mode::Custom { digested, .. } => Some(digested(head, body)),
            Mode::Raw => None,
            _ if head.is_encoded() => None,
            Mode::Json { without } => json::canonical_json(body, without),
            Mode::Form => form::canonical(head, body),
            Mode::Multipart => multipart::canonical(head, body),
        };
        // F2: what the mode can't read is raw, and says so.
        let (recipe, digested) = match digested {
            Some(bytes) => (self.own, Cow::Owned(bytes)),
            None => (self.raw, Cow::Borrowed(body)),
        };
        let mut hash = self.hash();
        hash.update(&digested);
        let (digest, length) = (hash.finish(), digested.len() as u64);
        self.fingerprint(recipe, head, Some(BodyPart { digest, length, extent: Extent::Whole }))
    }

    /// The fingerprint of a request whose body is longer than what is read up front: the body part
    /// is not known yet (F4). [`hasher`](Self::hasher) computes it.
    pub fn open(&self, head: &RequestHead<'_>) -> Fingerprint {
        match self.mode {
            Mode::Ignored => self.fingerprint(self.own, head, Some(BodyPart::IGNORED)),
            _ => self.fingerprint(self.raw, head, None),
        }
    }

    /// Hashes the body of a request that was fingerprinted by [`open`](Self::open), as it passes.
    pub fn hasher(&self) -> BodyHasher {
        match self.mode {
            Mode::Ignored => BodyHasher(None),
            _ => self.raw_hasher(),
        }
    }

    /// The fingerprinter by which a record of this algorithm was made (F3): what a retry has to be
    /// compared by. `None` if its parameters are unknown here, or its HMAC key is; then nobody can
    /// tell whether the retry is the same request, and it differs.
    ///
    /// Modes without parameters are always known, and so are the parameters of this fingerprinter
    /// and of those that it [also accepts](Self::also_accept).
    pub fn for_algorithm(&self, algorithm: Algorithm) -> Option<Self> {
        iter::once(self).chain(self.earlier.iter()).find_map(|known| known.variant(algorithm))
    }

    fn new(mode: Mode) -> Self {
        let raw = Recipe { algorithm: Algorithm::from_u32(0), parameters: None };
        let (headers, earlier) = (Arc::default(), Arc::default());
        Self { mode, headers, keyring: None, earlier, own: raw, raw }.settle()
    }

    fn settle(mut self) -> Self {
        let key_id = self.keyring.as_ref().map_or(0, Keyring::current);
        self.own = Recipe::new(&self.mode, &self.headers, key_id);
        self.raw = Recipe::new(&Mode::Raw, &self.headers, key_id);
        self
    }

    /// This fingerprinter, changed to another algorithm that needs no parameters but its own.
    fn variant(&self, algorithm: Algorithm) -> Option<Self> {
        let keyring = match algorithm.key_id() {
            0 => None,
            id => Some(self.keyring.as_ref()?.at(id)?),
        };
        let plain_json = Mode::Json { without: Arc::default() };
        [self.mode.clone(), Mode::Raw, plain_json, Mode::Form, Mode::Multipart, Mode::Ignored]
            .into_iter()
            .filter(|mode| mode.number() == algorithm.mode())
            .flat_map(|mode| {
                [self.headers.clone(), Arc::default()].map(|headers| {
                    let keyring = keyring.clone();
                    Self { headers, keyring, ..Self::new(mode.clone()) }.settle()
                })
            })
            .find(|variant| variant.own.algorithm == algorithm)
    }

    fn fingerprint(
        &self,
        recipe: Recipe,
        head: &RequestHead<'_>,
        body: Option<BodyPart>,
    ) -> Fingerprint {
        let mut preimage = Preimage::new();
        preimage.bytes(&recipe.algorithm.to_u32().to_be_bytes());
        preimage.part(recipe.parameters.as_ref().map_or(&[], |parameters| parameters));
        head.put(&mut preimage, &self.headers);
        let mut hash = self.hash();
        hash.update(preimage.as_bytes());
        Fingerprint { algorithm: recipe.algorithm, head: hash.finish(), body }
    }

    fn raw_hasher(&self) -> BodyHasher {
        BodyHasher(Some((self.hash(), 0)))
    }

    fn hash(&self) -> Hash {
        self.keyring.as_ref().map_or_else(Hash::plain, Keyring::hash)
    }
}

impl Default for Fingerprinter {
    /// [`Fingerprinter::raw`]
    fn default() -> Self {
        Self::raw()
    }
}

impl fmt::Debug for Fingerprinter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mode = match &self.mode {
            Mode::Raw => "raw",
            Mode::Json { .. } => "json",
            Mode::Form => "form",
            Mode::Multipart => "multipart",
            Mode::Ignored => "body_ignored",
            Mode::Custom { name, .. } => name,
        };
        f.debug_struct("Fingerprinter")
            .field("mode", &mode)
            .field("headers", &self.headers)
            .field("keyring", &self.keyring)
            .finish_non_exhaustive()
    }
}

/// Hashes a body as it passes, in constant memory (F4).
///
/// However the body is cut into pieces, the part is the same, and the same that
/// [`Fingerprinter::whole`] computes in the raw mode. Cloning it takes the state of this moment.
#[derive(Clone)]
pub struct BodyHasher(Option<(Hash, u64)>);

impl BodyHasher {
    /// Takes the next bytes of the body.
    pub fn update(&mut self, bytes: &[u8]) {
        if let Some((hash, length)) = &mut self.0 {
            hash.update(bytes);
            *length += bytes.len() as u64;
        }
    }

    /// The part that covers the bytes so far. `Whole` says that the body ended here.
    pub fn so_far(&self, extent: Extent) -> BodyPart {
        match &self.0 {
            Some((hash, length)) => {
                BodyPart { digest: hash.clone().finish(), length: *length, extent }
            }
            None => BodyPart::IGNORED,
        }
    }
}

impl fmt::Debug for BodyHasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BodyHasher").finish_non_exhaustive()
    }
}

impl Algorithm {
    const fn lay_out(mode: u8, key_id: u8, parameters: u16) -> Self {
        Self::from_u32((mode as u32) << 24 | (key_id as u32) << 16 | parameters as u32)
    }

    const fn mode(self) -> u8 {
        (self.to_u32() >> 24) as u8
    }

    const fn key_id(self) -> u8 {
        (self.to_u32() >> 16) as u8
    }
}

impl Mode {
    const fn number(&self) -> u8 {
        match self {
            Self::Raw => 1,
            Self::Json { .. } => 2,
            Self::Form => 3,
            Self::Multipart => 4,
            Self::Ignored => 5,
            Self::Custom { .. } => 6,
        }
    }

    /// What one has to know, besides the mode, to do the same again.
    fn parameters(&self) -> Vec<String> {
        match self {
            Self::Json { without } => {
                let mut pointers: Vec<_> = without.iter().map(JsonPointer::to_string).collect();
                pointers.sort();
                pointers.dedup();
                pointers
            }
            Self::Custom { name, .. } => vec![name.to_string()],
            _ => Vec::new(),
        }
    }
}

impl Recipe {
    fn new(mode: &Mode, headers: &[HeaderName], key_id: u8) -> Self {
        let parameters = mode.parameters();
        let lists = [
            parameters.iter().map(String::as_str).collect::<Vec<_>>(),
            headers.iter().map(HeaderName::as_str).collect(),
        ];
        let parameters: Option<[u8; 32]> = lists.iter().any(|list| !list.is_empty()).then(|| {
            let mut preimage = Preimage::new();
            for list in &lists {
                preimage.number(list.len());
                list.iter().for_each(|entry| preimage.part(entry.as_bytes()));
            }
            Sha256::digest(preimage.as_bytes()).into()
        });
        let short =
            parameters.map_or(0, |digest| u16::from_be_bytes([digest[0], digest[1]]).max(1));
        Self { algorithm: Algorithm::lay_out(mode.number(), key_id, short), parameters }
    }
}
