//! What of a request stays in Actix's own types while the engine has the rest of it.

use std::{cell::RefCell, rc::Rc};

use actix_web::{Error, HttpRequest, HttpResponse};
use fragile::Fragile;
use http::Extensions;

/// A shelf that the future of a request shares with the handler that runs for it.
///
/// There is one [`HttpRequest`] and it is never cloned: routers inside change it, which panics as
/// soon as there are two. So it stands here while the engine decides, goes to the handler, and comes
/// back with its response.
#[derive(Clone)]
pub(crate) struct Aside(Fragile<Rc<RefCell<Shelf>>>);

#[derive(Default)]
struct Shelf {
    request: Option<HttpRequest>,
    response: Option<HttpResponse<()>>,
    error: Option<Error>,
}

impl Aside {
    pub(crate) fn new(request: HttpRequest) -> Self {
        let shelf = Shelf { request: Some(request), ..Shelf::default() };
        Self(Fragile::new(Rc::new(RefCell::new(shelf))))
    }

    /// Of a request that this crate has handed to the engine.
    pub(crate) fn of(extensions: &Extensions) -> Option<&Self> {
        extensions.get()
    }

    /// Looks at the request, unless a handler has it.
    pub(crate) fn look<T>(&self, look: impl FnOnce(&HttpRequest) -> Option<T>) -> Option<T> {
        self.0.get().borrow().request.as_ref().and_then(look)
    }

    /// Gives the request, unless a handler has it or has lost it.
    pub(crate) fn take_request(&self) -> Option<HttpRequest> {
        self.0.get().borrow_mut().request.take()
    }

    /// The handler has answered: its request is back, and the head of its response is kept for the
    /// case that it is the answer.
    pub(crate) fn answered(&self, request: HttpRequest, response: HttpResponse<()>) {
        let mut shelf = self.0.get().borrow_mut();
        (shelf.request, shelf.response) = (Some(request), Some(response));
    }

    /// A middleware inside has failed: there is an error instead of the request.
    pub(crate) fn failed(&self, error: Error, response: HttpResponse<()>) {
        let mut shelf = self.0.get().borrow_mut();
        (shelf.error, shelf.response) = (Some(error), Some(response));
    }

    /// The head of the handler's own response.
    pub(crate) fn take_response(&self) -> Option<HttpResponse<()>> {
        self.0.get().borrow_mut().response.take()
    }

    pub(crate) fn take_error(&self) -> Option<Error> {
        self.0.get().borrow_mut().error.take()
    }
}
