//! Where the scope of a request comes from, for Actix (S1).

use std::any::type_name;

use actix_web::{HttpMessage as _, HttpRequest};
use fragile::Fragile;
use retrysafe::{ConfigError, Scope};

use crate::aside::Aside;

/// Where the scope of a request comes from: who its key belongs to.
///
/// It is [`retrysafe::ScopeFrom`], which see for what makes a good scope, except that it looks at
/// Actix's requests: at what a middleware has put into their extensions, which need not be `Send`.
///
/// ```
/// use retrysafe_actix::{Scope, ScopeFrom};
///
/// #[derive(Clone)]
/// struct User { id: String }
///
/// let per_user = ScopeFrom::extension(|user: &User| user.id.clone());
/// let one_trusted_client = ScopeFrom::from(Scope::shared());
/// ```
#[derive(Clone, Debug)]
pub struct ScopeFrom(retrysafe::ScopeFrom);

impl ScopeFrom {
    /// From what an authentication middleware outside has put into the request's extensions. A
    /// request without it is refused with `missing_scope`.
    pub fn extension<T, R>(name: impl Fn(&T) -> R + Send + Sync + 'static) -> Self
    where
        T: 'static,
        R: AsRef<[u8]>,
    {
        Self::function(move |request| {
            let found = request.extensions().get().map(|value| Scope::from_bytes(name(value)));
            if found.is_none() {
                tracing::warn!(
                    extension = type_name::<T>(),
                    "the request carries no such extension: is the middleware that sets it outside?",
                );
            }
            found
        })
    }

    /// See [`retrysafe::ScopeFrom::header`].
    ///
    /// # Errors
    ///
    /// If the name is not a header's.
    pub fn header(name: &str) -> Result<Self, ConfigError> {
        retrysafe::ScopeFrom::header(name).map(Self)
    }

    /// See [`retrysafe::ScopeFrom::cookie`].
    ///
    /// # Errors
    ///
    /// If the name is not a cookie's.
    pub fn cookie(name: &str) -> Result<Self, ConfigError> {
        retrysafe::ScopeFrom::cookie(name).map(Self)
    }

    /// See [`retrysafe::ScopeFrom::credentials`].
    pub fn credentials() -> Self {
        Self(retrysafe::ScopeFrom::credentials())
    }

    /// From the user's own function of the request. It must not keep a clone of the request: Actix
    /// panics when it has to change one that is shared.
    pub fn function(find: impl Fn(&HttpRequest) -> Option<Scope> + Send + Sync + 'static) -> Self {
        Self(retrysafe::ScopeFrom::function(move |parts| Aside::of(&parts.extensions)?.look(&find)))
    }

    /// From the user's own async function. It is given the request and must neither borrow from it
    /// nor keep a clone of it.
    pub fn async_function<F, R>(find: F) -> Self
    where
        F: Fn(&HttpRequest) -> R + Send + Sync + 'static,
        R: Future<Output = Option<Scope>> + 'static,
    {
        Self(retrysafe::ScopeFrom::async_function(move |parts| {
            let finding = Aside::of(&parts.extensions)
                .and_then(|aside| aside.look(|request| Some(Fragile::new(find(request)))));
            Fragile::new(async move { finding?.await })
        }))
    }
}

impl From<Scope> for ScopeFrom {
    fn from(scope: Scope) -> Self {
        Self(scope.into())
    }
}

impl From<ScopeFrom> for retrysafe::ScopeFrom {
    fn from(scope: ScopeFrom) -> Self {
        scope.0
    }
}
