//! Files of the project, as text and as tokens.

use std::fs;
use std::path::Path;

use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};

/// A file: its path inside the project, with `/`, and its text.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) path: String,
    pub(crate) text: String,
}

impl Source {
    /// Every token of a Rust file; comments are none, and doc comments are attributes.
    pub(crate) fn tokens(&self) -> TokenStream {
        let parsed = self.text.parse();
        parsed.unwrap_or_else(|error| panic!("{} is not Rust: {error}", self.path))
    }

    /// The tokens outside `#[cfg(test)]`.
    pub(crate) fn code(&self) -> TokenStream {
        if self.is_tests() {
            return TokenStream::new();
        }
        without_tests(self.tokens())
    }

    /// Whether this is the file of a `#[cfg(test)] mod tests;`.
    pub(crate) fn is_tests(&self) -> bool {
        self.path.ends_with("/tests.rs")
    }

    /// A finding in this file.
    pub(crate) fn finding(&self, line: usize, what: impl std::fmt::Display) -> String {
        format!("{}:{line}: {what}", self.path)
    }
}

/// The line a token starts on.
pub(crate) fn line(token: &TokenTree) -> usize {
    token.span().start().line
}

/// How many tokens the test item that `tokens` start with has; zero where they start with something else.
pub(crate) fn test_item(tokens: &[TokenTree]) -> usize {
    let [TokenTree::Punct(hash), TokenTree::Group(attribute), ..] = tokens else {
        return 0;
    };
    let text: String = attribute.stream().to_string().split_whitespace().collect();
    if hash.as_char() != '#' || text != "cfg(test)" {
        return 0;
    }
    let ends = |token: &TokenTree| match token {
        TokenTree::Group(group) => group.delimiter() == Delimiter::Brace,
        TokenTree::Punct(mark) => mark.as_char() == ';',
        _ => false,
    };
    tokens.iter().position(ends).map_or(tokens.len(), |last| last + 1)
}

fn without_tests(stream: TokenStream) -> TokenStream {
    let tokens: Vec<TokenTree> = stream.into_iter().collect();
    let mut kept = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        match (test_item(&tokens[at..]), &tokens[at]) {
            (0, TokenTree::Group(group)) => {
                let mut inner = Group::new(group.delimiter(), without_tests(group.stream()));
                inner.set_span(group.span());
                kept.push(TokenTree::Group(inner));
                at += 1;
            }
            (0, token) => {
                kept.push(token.clone());
                at += 1;
            }
            (length, _) => at += length,
        }
    }
    kept.into_iter().collect()
}

/// Calls `visit` at every token, with the tokens from there to the end of its group and the inline modules around it.
pub(crate) fn walk(stream: TokenStream, modules: &[String], visit: &mut impl FnMut(&[TokenTree], &[String])) {
    let tokens: Vec<TokenTree> = stream.into_iter().collect();
    for at in 0..tokens.len() {
        visit(&tokens[at..], modules);
        let TokenTree::Group(group) = &tokens[at] else {
            continue;
        };
        let mut inner = modules.to_vec();
        if let [.., TokenTree::Ident(keyword), TokenTree::Ident(name)] = &tokens[..at]
            && keyword == "mod"
        {
            inner.push(name.to_string());
        }
        walk(group.stream(), &inner, visit);
    }
}

/// The text files under folders of the project, or named themselves; what is not there is left out.
pub(crate) fn files_under(paths: &[&str]) -> Vec<Source> {
    let mut files = Vec::new();
    for path in paths {
        collect(path, &mut files);
    }
    files
}

fn collect(path: &str, files: &mut Vec<Source>) {
    let full = root().join(path);
    if full.is_dir() {
        for name in file_names(path) {
            collect(&format!("{path}/{name}"), files);
        }
    } else if let Ok(text) = fs::read_to_string(&full) {
        let path = path.to_owned();
        files.push(Source { path, text });
    }
}

/// The names in a folder of the project, in order.
pub(crate) fn file_names(folder: &str) -> Vec<String> {
    let entries = fs::read_dir(root().join(folder)).unwrap_or_else(|error| panic!("{folder}: {error}"));
    let name = |entry: std::io::Result<fs::DirEntry>| entry.expect("an entry").file_name();
    let mut names: Vec<_> = entries
        .map(name)
        .map(|name| name.to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
