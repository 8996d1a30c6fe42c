//! Who may use the page: accounts with a password, and the sessions of those who logged in.

mod accounts;
mod sessions;

pub use accounts::{
    ADMIN, AuthError, PASSWORD_BYTES_MAX, PASSWORD_CHARS_MIN, has_accounts, new_password, set_password,
};
pub use sessions::{CarriedSession, LoginError, Sessions};
