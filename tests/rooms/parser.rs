//! What a source file declares and imports.

use std::collections::{BTreeMap, BTreeSet};

use crate::tokens::{Token, is_word, tokens};

#[derive(Default)]
pub(crate) struct Module {
    pub(crate) file: String,
    /// Its modules, in files of their own or not.
    pub(crate) children: BTreeSet<String>,
    /// What it defines.
    pub(crate) items: BTreeSet<String>,
    /// Its `use` declarations.
    pub(crate) uses: Vec<Use>,
    /// The paths in its code.
    pub(crate) paths: Vec<Import>,
    /// Every identifier outside its `use` declarations.
    pub(crate) words: BTreeSet<String>,
}

/// A path that was written on a line.
#[derive(Clone)]
pub(crate) struct Import {
    pub(crate) path: Vec<String>,
    pub(crate) line: usize,
}

pub(crate) struct Use {
    pub(crate) import: Import,
    /// The name it brings; `None` for all names.
    pub(crate) name: Option<String>,
    pub(crate) is_public: bool,
}

/// Reads `text`, the file of the module at `path`. Returns that module and those inside it, and the paths of those that it
/// declares to be in files of their own.
pub(crate) fn parse(file: &str, text: &str, path: &[String]) -> (BTreeMap<Vec<String>, Module>, Vec<Vec<String>>) {
    let tokens = tokens(text);
    let mut parser = Parser { modules: BTreeMap::new(), file, tokens: &tokens, at: 0 };
    let files = parser.module(path);
    assert_eq!(parser.at, tokens.len(), "the brackets of {file} do not match");
    (parser.modules, files)
}

/// Returns the tokens of `text` but for what is there only for tests.
pub(crate) fn without_tests(text: &str) -> Vec<Token> {
    let tokens = tokens(text);
    let mut parser = Parser { modules: BTreeMap::new(), file: "", tokens: &tokens, at: 0 };
    let mut kept = vec![false; tokens.len()];
    while parser.at < tokens.len() {
        if parser.text(0) == "#" && parser.is_test_only() {
            parser.skip_item();
        } else {
            kept[parser.at] = true;
            parser.at += 1;
        }
    }
    tokens.into_iter().zip(kept).filter_map(|(token, is_kept)| is_kept.then_some(token)).collect()
}

struct Parser<'a> {
    modules: BTreeMap<Vec<String>, Module>,
    file: &'a str,
    tokens: &'a [Token],
    at: usize,
}

/// What begins the definition of a name.
const DEFINING: [&str; 8] = ["struct", "enum", "union", "trait", "type", "const", "static", "fn"];

impl Parser<'_> {
    fn text(&self, ahead: usize) -> &str {
        self.tokens.get(self.at + ahead).map_or("", |token| &token.text)
    }

    fn before(&self) -> &str {
        self.at.checked_sub(1).map_or("", |at| &self.tokens[at].text)
    }

    /// Reads a module to its end. Returns the modules in files of their own that it declares.
    fn module(&mut self, path: &[String]) -> Vec<Vec<String>> {
        let mut module = Module { file: self.file.to_owned(), ..Module::default() };
        let mut files = Vec::new();
        let mut depth = 0;
        while self.at < self.tokens.len() {
            match self.text(0) {
                "}" if depth == 0 => break,
                "}" => depth -= 1,
                "{" => depth += 1,
                "#" if self.is_test_only() => {
                    self.skip_item();
                    continue;
                }
                "mod" if depth == 0 => {
                    let name = self.text(1).to_owned();
                    let child: Vec<String> = path.iter().chain([&name]).cloned().collect();
                    module.children.insert(name);
                    self.at += 2;
                    if self.text(0) == "{" {
                        self.at += 1;
                        files.extend(self.module(&child));
                    } else {
                        files.push(child);
                    }
                }
                "use" if self.text(1) != "<" => {
                    let is_public = self.is_public();
                    self.at += 1;
                    self.use_tree(&[], is_public, &mut module.uses);
                }
                word if depth == 0 && is_word(word) && self.text(1) == "!" && self.text(2) == "{" => {
                    self.declaring_macro(&mut module);
                    continue;
                }
                "macro_rules" => drop(module.items.insert(self.text(2).to_owned())),
                word if depth == 0 && DEFINING.contains(&word) => drop(module.items.insert(self.text(1).to_owned())),
                word if is_word(word) => {
                    let begins_path = self.word(&mut module);
                    if begins_path {
                        continue;
                    }
                }
                _ => {}
            }
            self.at += 1;
        }
        self.modules.insert(path.to_vec(), module);
        files
    }

    /// Reads a macro that declares an enum, as `names! { enum ... }` does. Paths in it count.
    fn declaring_macro(&mut self, module: &mut Module) {
        let begin = self.at;
        self.at += 2;
        self.skip_group();
        let end = std::mem::replace(&mut self.at, begin);
        while self.at < end {
            match self.text(0) {
                "enum" => drop(module.items.insert(self.text(1).to_owned())),
                word if is_word(word) => {
                    let begins_path = self.word(module);
                    if begins_path {
                        continue;
                    }
                }
                _ => {}
            }
            self.at += 1;
        }
    }

    /// Notes the word that stands here. Returns whether it begins a path, which is read then.
    fn word(&mut self, module: &mut Module) -> bool {
        module.words.insert(self.text(0).to_owned());
        let begins_path = self.text(1) == "::" && !matches!(self.before(), "::" | ".");
        if begins_path {
            let import = self.path();
            module.paths.push(import);
        }
        begins_path
    }

    /// Reads a path in the code.
    fn path(&mut self) -> Import {
        let mut import = Import { path: vec![self.text(0).to_owned()], line: self.tokens[self.at].line };
        self.at += 1;
        while self.text(0) == "::" && is_word(self.text(1)) {
            import.path.push(self.text(1).to_owned());
            self.at += 2;
        }
        import
    }

    /// Reads what stands behind `base` in a `use` declaration, up to the end of it or of the branch.
    fn use_tree(&mut self, base: &[String], is_public: bool, uses: &mut Vec<Use>) {
        let line = self.tokens[self.at].line;
        let mut path = base.to_vec();
        loop {
            match self.text(0) {
                "{" => {
                    self.at += 1;
                    while self.text(0) != "}" {
                        self.use_tree(&path, is_public, uses);
                        if self.text(0) == "," {
                            self.at += 1;
                        }
                    }
                    self.at += 1;
                    return;
                }
                "*" => {
                    uses.push(Use { import: Import { path, line }, name: None, is_public });
                    self.at += 1;
                    return;
                }
                "::" => {}
                "self" if !path.is_empty() => {}
                "," | "}" | ";" | "as" => {
                    let mut name = path.last().cloned();
                    if self.text(0) == "as" {
                        name = Some(self.text(1).to_owned());
                        self.at += 2;
                    }
                    uses.push(Use { import: Import { path, line }, name, is_public });
                    return;
                }
                word => path.push(word.to_owned()),
            }
            self.at += 1;
        }
    }

    /// Returns whether the item here is visible elsewhere: `pub` or `pub(...)` stands before it.
    fn is_public(&self) -> bool {
        let before = &self.tokens[..self.at];
        let is_limited = before.last().is_some_and(|token| token.text == ")");
        let open = before.iter().rposition(|token| token.text == "(").unwrap_or(0);
        let at = if is_limited { open } else { self.at };
        at.checked_sub(1).is_some_and(|at| self.tokens[at].text == "pub")
    }

    /// Returns whether an attribute here keeps an item to tests.
    fn is_test_only(&self) -> bool {
        let attribute: Vec<&str> = (0..7).map(|ahead| self.text(ahead)).collect();
        attribute.starts_with(&["#", "[", "cfg", "(", "test"])
            || attribute == ["#", "[", "cfg", "(", "all", "(", "test"]
    }

    /// Goes past the attributes and the item that begin here.
    fn skip_item(&mut self) {
        while self.text(0) == "#" {
            self.at += 1;
            self.skip_group();
        }
        if self.text(0) == "pub" {
            self.at += 1;
            if self.text(0) == "(" {
                self.skip_group();
            }
        }
        let is_use = self.text(0) == "use";
        while !matches!(self.text(0), ";" | "") {
            let is_block = self.text(0) == "{";
            self.skip_group();
            if is_block && !is_use {
                return;
            }
        }
        self.at += 1;
    }

    /// Goes past a token, or past all between brackets.
    fn skip_group(&mut self) {
        let mut depth = 0;
        loop {
            match self.text(0) {
                "(" | "[" | "{" => depth += 1,
                ")" | "]" | "}" => depth -= 1,
                _ => {}
            }
            self.at += 1;
            if depth <= 0 || self.at >= self.tokens.len() {
                return;
            }
        }
    }
}
