//! The Lua scripts, each atomic on the server and one request.

use std::sync::LazyLock;

/// A script that the server keeps under its digest.
pub(crate) struct Script {
    pub(crate) text: &'static str,
    pub(crate) digest: String,
}

impl Script {
    fn new(text: &'static str) -> Self {
        Self { text, digest: redis::Script::new(text).get_hash().to_owned() }
    }
}

macro_rules! script {
    ($($part:expr),+) => {
        LazyLock::new(|| Script::new(concat!($($part),+)))
    };
}

/// ST8: a server that is full refuses claims. What is under way may still renew, end and be
/// forgotten; what that writes is little, or the outcome that the claim was granted for.
macro_rules! also_when_full {
    ($($path:literal),+) => {
        script!(
            "#!lua flags=allow-oom\n",
            include_str!("../lua/record.lua"),
            $(include_str!($path)),+
        )
    };
}

/// Without a flag the server lets a script run until it writes something new.
macro_rules! unless_full {
    ($path:literal) => {
        script!(include_str!("../lua/record.lua"), include_str!($path))
    };
}

pub(crate) static READ: LazyLock<Script> = unless_full!("../lua/read.lua");
pub(crate) static LOOK: LazyLock<Script> = unless_full!("../lua/look.lua");
pub(crate) static TOUCH: LazyLock<Script> = unless_full!("../lua/touch.lua");
pub(crate) static SUCCEED: LazyLock<Script> = unless_full!("../lua/succeed.lua");
pub(crate) static RENEW: LazyLock<Script> = also_when_full!("../lua/renew.lua");
pub(crate) static COMPLETE: LazyLock<Script> = also_when_full!("../lua/complete.lua");
pub(crate) static RELEASE: LazyLock<Script> = also_when_full!("../lua/release.lua");
pub(crate) static FORGET: LazyLock<Script> =
    also_when_full!("../lua/free.lua", "../lua/forget.lua");
pub(crate) static RESOLVE: LazyLock<Script> =
    also_when_full!("../lua/free.lua", "../lua/resolve.lua");

/// All of them, to be loaded when the store opens, so that no call pays for it (ST2).
pub(crate) fn all() -> [&'static Script; 9] {
    [&READ, &LOOK, &TOUCH, &SUCCEED, &RENEW, &COMPLETE, &RELEASE, &FORGET, &RESOLVE]
}
