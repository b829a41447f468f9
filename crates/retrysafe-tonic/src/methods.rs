//! The list of methods that are covered (G1), and where the key is in their requests (G2).

use std::{borrow::Cow, collections::HashMap, fmt, sync::Arc};

use bytes::Bytes;
use prost::Message;
use prost_types::{
    DescriptorProto, FileDescriptorSet, MethodDescriptorProto,
    field_descriptor_proto::{Label, Type},
};
use retrysafe::{Code, ConfigError, Problem};
use tonic::server::NamedService;

use crate::message::{self, Unreadable};

/// The unary methods that a layer covers (G1). Everything else passes through, streams included.
///
/// A method is named as it is in a `.proto` file: `ledger.v1.Ledger/Transfer`. From a descriptor
/// set a layer also knows that it exists and is unary:
///
/// ```
/// use retrysafe_tonic::UnaryMethods;
///
/// # const DESCRIPTORS: &[u8] = include_bytes!("../tests/generated/ledger.v1.bin");
/// // const DESCRIPTORS: &[u8] = tonic::include_file_descriptor_set!("ledger.v1");
/// let methods = UnaryMethods::described(DESCRIPTORS, ["ledger.v1.Ledger/Transfer"])?
///     .key_field("request_id")?;
///
/// let streams = UnaryMethods::described(DESCRIPTORS, ["ledger.v1.Ledger/Watch"]);
/// assert!(streams.is_err());
/// # Ok::<(), retrysafe_tonic::ConfigError>(())
/// ```
///
/// Without one, from the generated service:
///
/// ```
/// use retrysafe_tonic::UnaryMethods;
///
/// # mod ledger { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/generated/ledger.v1.rs")); }
/// use ledger::{TransferRequest, ledger_server::LedgerServer};
///
/// let methods = UnaryMethods::of::<LedgerServer<()>>(["Transfer"])?
///     .key_from("ledger.v1.Ledger/Transfer", |it: &TransferRequest| it.request_id.clone())?;
/// # Ok::<(), retrysafe_tonic::ConfigError>(())
/// ```
///
/// A streaming method that is listed in this way still runs once: its answer goes out as it is made
/// and is kept at its end, and a request that stays open for 10 s is refused before it runs.
#[derive(Clone)]
pub struct UnaryMethods(HashMap<String, Method>);

#[derive(Clone, Default)]
struct Method {
    key: Option<Arc<KeyFinder>>,
    /// The type of its request, if it is known.
    request: Option<Arc<DescriptorProto>>,
}

type KeyFinder = dyn Fn(&[u8]) -> Result<Option<String>, Unreadable> + Send + Sync;

impl UnaryMethods {
    /// Methods by their full names: `ledger.v1.Ledger/Transfer`.
    ///
    /// # Errors
    ///
    /// If there is none, or one is not spelled so.
    pub fn named<N: AsRef<str>>(names: impl IntoIterator<Item = N>) -> Result<Self, ConfigError> {
        let methods = names.into_iter().map(|name| Ok((path(name.as_ref())?, Method::default())));
        Self::some(methods.collect::<Result<_, _>>()?)
    }

    /// Methods of a generated service, by their names in it: `Transfer`.
    ///
    /// # Errors
    ///
    /// If there is none, or one is not a method's name.
    pub fn of<T: NamedService>(
        names: impl IntoIterator<Item = &'static str>,
    ) -> Result<Self, ConfigError> {
        Self::named(names.into_iter().map(|name| format!("{}/{name}", T::NAME)))
    }

    /// Methods by their full names, looked up in an encoded `FileDescriptorSet`.
    ///
    /// # Errors
    ///
    /// If there is none, if the set can't be read, does not know one of them, or says that one
    /// streams.
    pub fn described<N: AsRef<str>>(
        descriptor_set: &[u8],
        names: impl IntoIterator<Item = N>,
    ) -> Result<Self, ConfigError> {
        let set = FileDescriptorSet::decode(descriptor_set)
            .map_err(|error| wrong(format!("the descriptor set can't be read: {error}")))?;
        let methods = names.into_iter().map(|name| {
            let name = name.as_ref();
            let path = path(name)?;
            let method = find_method(&set, name)
                .ok_or_else(|| wrong(format!("the descriptor set knows no method `{name}`")))?;
            if method.client_streaming() || method.server_streaming() {
                return Err(wrong(format!("`{name}` streams: only unary methods can be covered")));
            }
            let request = find_message(&set, method.input_type()).cloned().map(Arc::new);
            Ok((path, Method { key: None, request }))
        });
        Self::some(methods.collect::<Result<_, _>>()?)
    }

    fn some(methods: HashMap<String, Method>) -> Result<Self, ConfigError> {
        match methods.is_empty() {
            true => Err(wrong("at least one method must be covered")),
            false => Ok(Self(methods)),
        }
    }

    /// Takes the key from this field of the request as well, if it is not empty: AIP-155 calls it
    /// `request_id` (G2). It has to be a string, in the request of each method; see
    /// [`and`](Self::and) for lists of which only a part has it.
    ///
    /// Requests of these methods are read whole, up to 4 MiB, before the store is asked. One in
    /// which the key can't be looked for is refused: one that is longer, is not protobuf, or is
    /// compressed.
    ///
    /// # Errors
    ///
    /// If the methods were not [`described`](Self::described), or one of them has no such field.
    pub fn key_field(mut self, field: &str) -> Result<Self, ConfigError> {
        for (path, method) in &mut self.0 {
            let name = &path[1..];
            let request = method.request.as_ref().ok_or_else(|| {
                wrong(format!("the request of `{name}` is not known: no descriptor set has it"))
            })?;
            let wanted = request.field.iter().find(|it| it.name() == field);
            let number = wanted
                .filter(|it| it.r#type() == Type::String && it.label() != Label::Repeated)
                .and_then(|it| u32::try_from(it.number()).ok())
                .ok_or_else(|| {
                    wrong(format!("the request of `{name}` has no string field `{field}`"))
                })?;
            method.key = Some(Arc::new(move |request| {
                message::string_field(request, number).map(|it| it.map(str::to_owned))
            }));
        }
        Ok(self)
    }

    /// Takes the key of one method from its request as well, if what `find` gives is not empty
    /// (G2). See [`key_field`](Self::key_field) for how such requests are read.
    ///
    /// # Errors
    ///
    /// If the method is not on the list.
    pub fn key_from<M: Message + Default>(
        mut self,
        name: &str,
        find: impl Fn(&M) -> String + Send + Sync + 'static,
    ) -> Result<Self, ConfigError> {
        let method = self
            .0
            .get_mut(&path(name)?)
            .ok_or_else(|| wrong(format!("`{name}` is not on the list")))?;
        method.key = Some(Arc::new(move |request| {
            let request = M::decode(request).map_err(|_| Unreadable::Malformed)?;
            Ok(Some(find(&request)).filter(|key| !key.is_empty()))
        }));
        Ok(self)
    }

    /// These methods and others.
    pub fn and(mut self, others: Self) -> Self {
        self.0.extend(others.0);
        self
    }

    pub(crate) fn contains(&self, path: &str) -> bool {
        self.0.contains_key(path)
    }

    pub(crate) fn have_key_fields(&self) -> bool {
        self.0.values().any(|method| method.key.is_some())
    }

    /// The key in a request. One that can't be looked for is a bad key: a request with a bad key
    /// never runs unprotected (K3).
    pub(crate) fn key_of(
        &self,
        path: &str,
        body: Option<&Bytes>,
    ) -> Result<Option<String>, Problem> {
        let Some(find) = self.0.get(path).and_then(|method| method.key.as_ref()) else {
            return Ok(None);
        };
        message::only(body.ok_or_else(Problem::key_out_of_reach)?)
            .and_then(|message| find(message))
            .map_err(|unreadable| Problem::new(Code::InvalidKey, unreadable.to_string()))
    }
}

impl fmt::Debug for UnaryMethods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// The path of a method, as requests have it.
fn path(name: &str) -> Result<String, ConfigError> {
    let identifier = |it: &str| {
        it.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
            && it.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    match name.split_once('/') {
        Some((service, method)) if service.split('.').all(identifier) && identifier(method) => {
            Ok(format!("/{name}"))
        }
        _ => Err(wrong(format!("`{name}` is not a method's name: write `package.Service/Method`"))),
    }
}

fn wrong(problem: impl Into<String>) -> ConfigError {
    ConfigError::new("methods", problem)
}

fn find_method<'a>(set: &'a FileDescriptorSet, name: &str) -> Option<&'a MethodDescriptorProto> {
    let (service, method) = name.split_once('/')?;
    set.file.iter().find_map(|file| {
        let service =
            file.service.iter().find(|it| qualified(file.package(), it.name()) == service);
        service?.method.iter().find(|it| it.name() == method)
    })
}

/// The message of a type, which a descriptor spells `.package.Outer.Inner`.
fn find_message<'a>(set: &'a FileDescriptorSet, spelled: &str) -> Option<&'a DescriptorProto> {
    let wanted = spelled.strip_prefix('.')?;
    set.file.iter().find_map(|file| {
        let rest = match file.package() {
            "" => wanted,
            package => wanted.strip_prefix(package)?.strip_prefix('.')?,
        };
        let mut names = rest.split('.');
        let first = names.next()?;
        let outer = file.message_type.iter().find(|it| it.name() == first)?;
        names.try_fold(outer, |outer, name| outer.nested_type.iter().find(|it| it.name() == name))
    })
}

fn qualified<'a>(package: &str, name: &'a str) -> Cow<'a, str> {
    match package {
        "" => Cow::Borrowed(name),
        package => Cow::Owned(format!("{package}.{name}")),
    }
}
