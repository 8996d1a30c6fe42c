//! What kind of failure an error is: the part of it that scripts can tell by the exit status.

/// What kind of failure it was; decides the exit status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// The package is refused: trying it again changes nothing.
    Refused,
    /// The disk is full or failing.
    Disk,
    /// It was cancelled, or its bytes stopped coming: it may be tried again.
    Busy,
    /// The machine or this program failed.
    Internal,
}
