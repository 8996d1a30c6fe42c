//! What the owners of an attempt share: the manager makes it once.

use std::sync::Arc;

use super::ending::Endings;
use super::house::House;
use super::journal::JournalKeeper;
use super::parts::Parts;
use super::steps::Steps;

/// What the owners of an attempt share.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) parts: Arc<Parts>,
    pub(super) journal: Arc<JournalKeeper>,
    pub(super) steps: Arc<Steps>,
    pub(super) endings: Arc<Endings>,
    pub(super) house: Arc<House>,
}
