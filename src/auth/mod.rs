//! Who may use the page: accounts with a password, who may try one, and the sessions of those who logged in.

mod accounts;
mod attempts;
mod password;
mod sessions;

pub use accounts::{
    ADMIN, AuthError, PASSWORD_BYTES_MAX, PASSWORD_CHARS_MIN, has_accounts, new_password, set_password,
};
pub use attempts::From;
pub use sessions::{Begun, CarriedSession, Login, LoginError, Sessions};
