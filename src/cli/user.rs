//! `refit user`: the accounts of the admin page.

use std::io::{self, BufRead};

use refit_base::Exit;
use serde::Serialize;

use super::context::Context;
use super::said::in_json;
use crate::auth;

#[derive(Debug, clap::Subcommand)]
pub(super) enum User {
    /// Set a password, read from standard input; with --generate a new one is made and printed.
    Passwd {
        /// The account.
        #[arg(default_value = auth::ADMIN)]
        name: String,
        /// Make a new password and print it.
        #[arg(long)]
        generate: bool,
    },
}

/// An account whose password was set.
#[derive(Serialize)]
struct Changed<'a> {
    user: &'a str,
    /// The password, if it was made here.
    password: Option<&'a str>,
}

pub(super) fn run(context: &Context, user: &User) -> Exit {
    let User::Passwd { name, generate } = user;
    if let Err(error) = context.home.require_own() {
        return context.fail(&error);
    }
    let password = if *generate {
        auth::new_password()
    } else {
        let mut line = String::new();
        if let Err(error) = io::stdin().lock().read_line(&mut line) {
            let text = format!("cannot read the password from standard input: {error}");
            return context.print_failure(&text, "input", "", Exit::Usage);
        }
        line.trim_end_matches(['\n', '\r']).to_owned()
    };
    match auth::set_password(&context.home, name, &password) {
        Ok(()) => {
            if context.json {
                let shown = generate.then_some(password.as_str());
                context.print(&in_json(&Changed { user: name, password: shown }));
            } else if *generate {
                context.print(&password);
            } else {
                context.print(&format!("the account {name} has the new password"));
            }
            Exit::Done
        }
        Err(error) => context.fail(&error),
    }
}
