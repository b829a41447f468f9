//! The client: reqwest, the middleware, and the journal in one.

use std::{fmt, sync::Arc, time::Duration};

use reqwest::{IntoUrl, Method, Request, Response};
use reqwest_middleware::{ClientWithMiddleware, Middleware, RequestBuilder};
use retrysafe_core::{
    Clock, ConfigError, Entropy, SystemClock, SystemEntropy,
    client::{Dialect, KeySource, RetryPolicy},
};

use crate::{
    ClientLayer, IdempotencyMiddleware, Settings, ShareAnswers, calls::Calls, journal::Journal,
    same_origin_redirects,
};

/// An HTTP client whose operations keep their keys. Cloning it is cheap, and clones share everything.
///
/// ```no_run
/// use retrysafe_client::{Client, FileJournal, OutcomeUnknown};
///
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// let client = Client::builder().journal(FileJournal::open("orders.journal")?).build()?;
/// // What an earlier run of this program does not know the outcome of.
/// for resumed in client.resume().await? {
///     println!("{}: {:?}", resumed.operation(), resumed.outcome());
/// }
/// let order = client.post("http://127.0.0.1:3000/orders").body(r#"{"item":"book"}"#);
/// match order.send().await {
///     Ok(response) => println!("{}", response.status()),
///     Err(error) => match OutcomeUnknown::of(&error) {
///         Some(unknown) => println!("unknown yet: {unknown}"),
///         None => println!("it was not placed: {error}"),
///     },
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Client {
    pub(crate) http: ClientWithMiddleware,
    pub(crate) calls: Arc<Calls>,
    pub(crate) before_resuming: Option<Arc<BeforeResuming>>,
}

pub(crate) type BeforeResuming = dyn Fn(&mut Request) + Send + Sync;

impl Client {
    /// A client with the settings that you name, and the defaults for all others.
    pub fn builder() -> ClientBuilder {
        ClientBuilder::default()
    }

    /// Begins a POST. Its key is made when it is sent, once; a clone of the request is another
    /// operation.
    pub fn post(&self, url: impl IntoUrl) -> RequestBuilder {
        self.http.post(url)
    }

    /// Begins a PATCH.
    pub fn patch(&self, url: impl IntoUrl) -> RequestBuilder {
        self.http.patch(url)
    }

    /// Begins a request of any method.
    pub fn request(&self, method: Method, url: impl IntoUrl) -> RequestBuilder {
        self.http.request(method, url)
    }

    /// Sends a request.
    ///
    /// # Errors
    ///
    /// What reqwest says, if nothing has to be found out; else [`Error`](crate::Error) as a middleware's
    /// error, and [`OutcomeUnknown`](crate::OutcomeUnknown) among its causes.
    ///
    /// # Cancel safety
    ///
    /// What was sent is not taken back. With a journal it is resumed later.
    pub async fn execute(&self, request: Request) -> reqwest_middleware::Result<Response> {
        self.http.execute(request).await
    }

    /// The client below, with all its methods.
    pub fn http(&self) -> &ClientWithMiddleware {
        &self.http
    }

    /// The settings.
    pub fn settings(&self) -> &Settings {
        &self.calls.settings
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("settings", &self.calls.settings).finish_non_exhaustive()
    }
}

/// Builds a [`Client`], or what makes the same calls for others: an [`IdempotencyMiddleware`], a
/// [`ClientLayer`], or, with the feature `tonic`, a client for unary gRPC calls.
pub struct ClientBuilder {
    settings: Settings,
    journal: Option<Arc<dyn Journal>>,
    http: Option<reqwest::ClientBuilder>,
    inner: Vec<Arc<dyn Middleware>>,
    before_resuming: Option<Arc<BeforeResuming>>,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
}

impl Default for ClientBuilder {
    fn default() -> Self {
        Self {
            settings: Settings::default(),
            journal: None,
            http: None,
            inner: Vec::new(),
            before_resuming: None,
            clock: Arc::new(SystemClock::new()),
            entropy: Arc::new(SystemEntropy),
        }
    }
}

/// How long connecting may take: what does not connect was surely not sent, and that is worth knowing
/// before the attempt's time is over.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

impl ClientBuilder {
    /// What the server understands: [`Dialect::draft07`] by default.
    pub fn dialect(mut self, dialect: Dialect) -> Self {
        self.settings.dialect = dialect;
        self
    }

    /// Where keys come from: random UUIDs by default.
    pub fn keys(mut self, keys: KeySource) -> Self {
        self.settings.keys = keys;
        self
    }

    /// How often, how long and after which pauses a call is tried.
    pub fn retries(mut self, retries: RetryPolicy) -> Self {
        self.settings.retries = retries;
        self
    }

    /// All settings at once, from a configuration for instance.
    pub fn settings(mut self, settings: Settings) -> Self {
        self.settings = settings;
        self
    }

    /// Has calls of this process share answers, for servers that know no keys (C7).
    pub fn share_answers(mut self, share: ShareAnswers) -> Self {
        self.settings.shared_answers = Some(share);
        self
    }

    /// Keeps keys and requests before they are sent, so that [`Client::resume`] can find out what
    /// became of them after a crash. Requests whose body is a stream are refused then.
    ///
    /// A journal is one client's (and its clones'), and stays with the [`dialect`](Self::dialect) that it
    /// was written under: whether an operation may be sent again is for the dialect to say.
    pub fn journal(mut self, journal: impl Journal) -> Self {
        self.journal = Some(Arc::new(journal));
        self
    }

    /// The reqwest client below. Its redirect policy is replaced by
    /// [`same_origin_redirects`] (C6). By default connecting may take 10 s.
    pub fn http(mut self, http: reqwest::ClientBuilder) -> Self {
        self.http = Some(http);
        self
    }

    /// Adds a middleware inside: it sees every attempt. What signs requests belongs here.
    pub fn with(mut self, middleware: impl Middleware) -> Self {
        self.inner.push(Arc::new(middleware));
        self
    }

    /// Changes requests that are resumed before they are sent: credentials are not in the journal.
    pub fn before_resuming(
        mut self,
        change: impl Fn(&mut Request) + Send + Sync + 'static,
    ) -> Self {
        self.before_resuming = Some(Arc::new(change));
        self
    }

    /// What tells the time.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// What gives random numbers.
    pub fn entropy(mut self, entropy: Arc<dyn Entropy>) -> Self {
        self.entropy = entropy;
        self
    }

    /// The client.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the first setting that can't be used.
    pub fn build(mut self) -> Result<Client, ConfigError> {
        let http = self.http.take();
        let http = http
            .unwrap_or_else(|| reqwest::Client::builder().connect_timeout(CONNECT_TIMEOUT))
            .redirect(same_origin_redirects())
            .build()
            .map_err(|error| ConfigError::new("http", error.to_string()))?;
        let inner = std::mem::take(&mut self.inner);
        let before_resuming = self.before_resuming.take();
        let calls = self.calls()?;
        let ours: Arc<dyn Middleware> = Arc::new(IdempotencyMiddleware { calls: calls.clone() });
        let stack: Vec<_> = std::iter::once(ours).chain(inner).collect();
        Ok(Client { http: ClientWithMiddleware::new(http, stack), calls, before_resuming })
    }

    /// The middleware alone, for a stack of your own. Give the `reqwest::Client` below it
    /// [`same_origin_redirects`].
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the first setting that can't be used.
    pub fn middleware(self) -> Result<IdempotencyMiddleware, ConfigError> {
        Ok(IdempotencyMiddleware { calls: self.calls()? })
    }

    /// The layer for Tower.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the first setting that can't be used.
    pub fn layer(self) -> Result<ClientLayer, ConfigError> {
        Ok(ClientLayer::new(self.calls()?))
    }

    /// The same policy for unary gRPC calls to one authority, which has a retry budget of its own.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the first setting that can't be used: keys are made from content only where
    /// the content is seen, answers are shared only of HTTP, and with a journal it takes
    /// [`journaled_unary`](Self::journaled_unary).
    #[cfg(feature = "tonic")]
    pub fn unary(self, authority: &str) -> Result<crate::UnaryClient, ConfigError> {
        if self.journal.is_some() {
            let problem = "generated code does not show what it sends: choose journaled_unary";
            return Err(ConfigError::new("journal", problem));
        }
        self.any_unary(authority)
    }

    /// The same with a journal, over a channel.
    ///
    /// # Errors
    ///
    /// As [`unary`](Self::unary); also without a journal.
    #[cfg(feature = "tonic")]
    pub fn journaled_unary<C>(
        self,
        authority: &str,
        channel: C,
    ) -> Result<crate::JournaledUnaryClient<C>, ConfigError> {
        if self.journal.is_none() {
            return Err(ConfigError::new("journal", "name one, or choose unary"));
        }
        Ok(crate::JournaledUnaryClient::new(self.any_unary(authority)?, channel))
    }

    #[cfg(feature = "tonic")]
    fn any_unary(self, authority: &str) -> Result<crate::UnaryClient, ConfigError> {
        if matches!(self.settings.keys, KeySource::Content(_)) {
            let problem = "the content of a gRPC message is not seen: choose UUIDs, or name each";
            return Err(ConfigError::new("key", problem));
        }
        if self.settings.shared_answers.is_some() {
            return Err(ConfigError::new("share_answers", "a gRPC answer can't be shared"));
        }
        crate::UnaryClient::new(self.calls()?, authority)
    }

    pub(crate) fn calls(self) -> Result<Arc<Calls>, ConfigError> {
        self.settings.validate()?;
        Ok(Arc::new(Calls::new(self.settings, self.journal, self.clock, self.entropy)))
    }
}

impl fmt::Debug for ClientBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientBuilder").field("settings", &self.settings).finish_non_exhaustive()
    }
}
