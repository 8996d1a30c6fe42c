//! A command line that is not understood, or that asks for help.

use std::io::{self, Write};

use clap::error::{ContextKind, ContextValue, ErrorKind};
use refit_base::Exit;

/// Prints the help that was asked for, or one line that says what is wrong with the command line.
pub(super) fn report(error: clap::Error, command: &clap::Command) -> Exit {
    let error = without_hidden(error, command);
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand || !error.use_stderr() {
        drop(error.print()); // as in `Context::print`
        return if error.use_stderr() { Exit::Usage } else { Exit::Done };
    }
    let text = error.render().to_string();
    let mut parts = text.split("\nUsage:");
    let what = parts.next().and_then(|part| part.split("\nFor more information").next()).unwrap_or_default();
    let paragraphs = what.trim_start_matches("error: ").split("\n\n").map(|paragraph| {
        let words: Vec<&str> = paragraph.split_whitespace().collect();
        words.join(" ").replacen("tip: ", "", 1)
    });
    let line = paragraphs.filter(|paragraph| !paragraph.is_empty()).collect::<Vec<_>>().join("; ");
    let command = parts.next().map_or("refit".to_owned(), named_in);
    drop(writeln!(io::stderr().lock(), "refit: {line}; see `{command} --help`"));
    Exit::Usage
}

/// Returns the command that `usage` is of: the words before its options and arguments.
fn named_in(usage: &str) -> String {
    let is_word = |word: &&str| word.starts_with(|first: char| first.is_ascii_lowercase());
    usage.split_whitespace().take_while(is_word).collect::<Vec<_>>().join(" ")
}

/// Returns `error` without the hidden commands among those that it proposes.
fn without_hidden(mut error: clap::Error, command: &clap::Command) -> clap::Error {
    let is_hidden = |name: &String| command.find_subcommand(name).is_some_and(clap::Command::is_hide_set);
    match error.remove(ContextKind::SuggestedSubcommand) {
        Some(ContextValue::Strings(names)) => {
            let shown: Vec<String> = names.into_iter().filter(|name| !is_hidden(name)).collect();
            if !shown.is_empty() {
                error.insert(ContextKind::SuggestedSubcommand, ContextValue::Strings(shown));
            }
        }
        Some(ContextValue::String(name)) if is_hidden(&name) => {}
        Some(value) => drop(error.insert(ContextKind::SuggestedSubcommand, value)),
        None => {}
    }
    error
}
