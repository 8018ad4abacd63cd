//! The checks: each takes a file and returns what breaks a rule in it.

use proc_macro2::{Delimiter, TokenTree};

use crate::rules::{BANNED_NAMES, BANNED_TEXT, IMPORT_EXCEPTIONS, IMPORTS, LONG_FILES, MOST_LINES, UNSAFE};
use crate::source::{Source, line, test_item, walk};

/// An import: the line and the path from the crate's root.
struct Import {
    line: usize,
    path: Vec<String>,
}

/// Imports outside tests that the table does not allow.
pub(crate) fn imports(file: &Source) -> Vec<String> {
    let Some(module) = module_path(&file.path).into_iter().next() else {
        return Vec::new();
    };
    let row = IMPORTS.iter().find(|(name, _)| *name == module);
    let allowed = row.map_or(&[][..], |(_, allowed)| allowed);
    imports_of(file)
        .into_iter()
        .filter(|import| import.path[0] != module && !allowed.contains(&import.path[0].as_str()))
        .filter(|import| exception(&module, &import.path).is_none())
        .map(|import| {
            let path = import.path.join("::");
            file.finding(
                import.line,
                format!("{module} may not import {path} (see tests/tidy/rules.rs)"),
            )
        })
        .collect()
}

/// The exceptions that a file needs.
pub(crate) fn exceptions_used(file: &Source) -> Vec<(&'static str, &'static str, &'static str)> {
    let module = module_path(&file.path).into_iter().next().unwrap_or_default();
    let imports = imports_of(file);
    imports
        .iter()
        .filter_map(|import| exception(&module, &import.path))
        .collect()
}

/// What is wrong with the table itself, for the modules in `src`.
pub(crate) fn table(rows: &[(&str, &[&str])], src: &[String]) -> Vec<String> {
    let mut problems = Vec::new();
    let place = |module: &str| rows.iter().position(|(name, _)| *name == module);
    for name in src.iter().map(|name| name.trim_end_matches(".rs")) {
        if name != "lib" && place(name).is_none() {
            problems.push(format!("{name} has no row in the table of imports"));
        }
    }
    for (at, (module, allowed)) in rows.iter().enumerate() {
        for import in allowed
            .iter()
            .filter(|import| place(import).is_none_or(|row| row <= at))
        {
            problems.push(format!("{import} is not a row below {module}"));
        }
    }
    problems
}

/// Lines of a file, the items of its tests aside.
pub(crate) fn code_lines(file: &Source) -> usize {
    if file.is_tests() {
        return 0;
    }
    let tokens: Vec<TokenTree> = file.tokens().into_iter().collect();
    let mut lines = file.text.lines().count();
    for at in 0..tokens.len() {
        if let [first, .., last] = &tokens[at..at + test_item(&tokens[at..])] {
            lines -= last.span().end().line - line(first) + 1;
        }
    }
    lines
}

/// A file that is too long.
pub(crate) fn size(file: &Source) -> Vec<String> {
    let lines = code_lines(file);
    if lines <= MOST_LINES || LONG_FILES.iter().any(|(path, _)| *path == file.path) {
        return Vec::new();
    }
    let what = format!("{lines} lines without tests are more than {MOST_LINES}");
    vec![file.finding(lines, what)]
}

/// A module whose name says nothing.
pub(crate) fn name(file: &Source) -> Vec<String> {
    let mut names = vec![(1, module_path(&file.path))];
    walk(file.tokens(), &[], &mut |tokens, _| {
        if let [TokenTree::Ident(keyword), TokenTree::Ident(name), ..] = tokens
            && keyword == "mod"
        {
            names.push((line(&tokens[0]), vec![name.to_string()]));
        }
    });
    let banned = |name: &String| BANNED_NAMES.contains(&name.as_str());
    names
        .iter()
        .filter_map(|(line, names)| Some((line, names.iter().find(|name| banned(name))?)))
        .map(|(line, name)| file.finding(*line, format!("{name} says nothing about what is in it")))
        .collect()
}

/// A module that does not begin with `//!`.
pub(crate) fn purpose(file: &Source) -> Vec<String> {
    if file.text.starts_with("//! ") {
        return Vec::new();
    }
    vec![file.finding(1, "a module opens with `//!` and its purpose")]
}

/// `unsafe` where it is not allowed, placeholders, and lint exceptions that are silent or have no reason.
pub(crate) fn words(file: &Source) -> Vec<String> {
    let mut findings = Vec::new();
    let may_be_unsafe = UNSAFE.iter().any(|(path, _)| *path == file.path);
    walk(file.tokens(), &[], &mut |tokens, _| {
        if matches!(&tokens[0], TokenTree::Ident(word) if word == "unsafe") && may_be_unsafe {
            return;
        }
        if let Some(what) = banned_word(tokens) {
            findings.push(file.finding(line(&tokens[0]), what));
        }
    });
    findings
}

/// SQL outside the store.
pub(crate) fn sql(file: &Source) -> Vec<String> {
    let mut findings = Vec::new();
    if file.path.starts_with("src/store/") {
        return findings;
    }
    walk(file.code(), &[], &mut |tokens, _| {
        if matches!(&tokens[0], TokenTree::Ident(word) if word == "sqlx") {
            findings.push(file.finding(line(&tokens[0]), "only src/store uses sqlx"));
        }
    });
    findings
}

/// Words that no text contains.
pub(crate) fn text(file: &Source) -> Vec<String> {
    let mut findings = Vec::new();
    for (at, line) in file.text.lines().enumerate() {
        for banned in BANNED_TEXT.iter().filter(|banned| line.contains(**banned)) {
            findings.push(file.finding(at + 1, format!("{banned} does not belong here")));
        }
    }
    findings
}

fn banned_word(tokens: &[TokenTree]) -> Option<String> {
    match tokens {
        [TokenTree::Ident(word), ..] if word == "unsafe" => Some("unsafe code".to_owned()),
        [TokenTree::Ident(word), TokenTree::Punct(bang), ..]
            if bang.as_char() == '!' && ["todo", "unimplemented", "dbg"].iter().any(|w| word == w) =>
        {
            Some(format!("{word}! is left over"))
        }
        [TokenTree::Punct(hash), TokenTree::Group(attribute), ..]
        | [
            TokenTree::Punct(hash),
            TokenTree::Punct(_),
            TokenTree::Group(attribute),
            ..,
        ] if hash.as_char() == '#' && attribute.delimiter() == Delimiter::Bracket => {
            silent_exception(&attribute.stream().to_string())
        }
        _ => None,
    }
}

/// An attribute that lifts a lint for good, or without saying why; `cfg_attr` around it makes no difference.
fn silent_exception(attribute: &str) -> Option<String> {
    let text: String = attribute.split_whitespace().collect();
    let says = |word: &str| text.starts_with(word) || text.contains(&format!(",{word}"));
    if says("allow(") {
        return Some(format!("{text}: say #[expect(…, reason = …)] instead"));
    }
    (says("expect(") && !text.contains("reason=")).then(|| format!("{text} has no reason"))
}

fn exception(module: &str, path: &[String]) -> Option<(&'static str, &'static str, &'static str)> {
    let path = format!("{}::", path.join("::"));
    let found = IMPORT_EXCEPTIONS
        .iter()
        .find(|(name, item, _)| *name == module && path.starts_with(&format!("{item}::")));
    found.copied()
}

/// `src/http/mod.rs` is `[http]`, `src/http/classify.rs` is `[http, classify]`, the crate's root is empty.
fn module_path(path: &str) -> Vec<String> {
    let inside = path.split_once('/').map_or(path, |(_, inside)| inside);
    let parts = inside.trim_end_matches(".rs").split('/');
    parts
        .filter(|part| !matches!(*part, "mod" | "lib"))
        .map(str::to_owned)
        .collect()
}

fn imports_of(file: &Source) -> Vec<Import> {
    let mut imports = Vec::new();
    walk(file.code(), &module_path(&file.path), &mut |tokens, module| {
        let Some((mut base, rest)) = root_of(tokens, module) else {
            return;
        };
        leaves(rest, &mut base, &mut imports);
    });
    imports
}

/// Where a path that begins with `crate`, `clipkeep` or `super` starts, and what follows its first `::`.
///
/// The later words of `super::super` are looked at again by themselves. They then seem to lead less far up, into the
/// module itself, which is always allowed.
fn root_of<'a>(tokens: &'a [TokenTree], module: &[String]) -> Option<(Vec<String>, &'a [TokenTree])> {
    let mut rest = after_colons(&tokens[1..])?;
    let TokenTree::Ident(first) = &tokens[0] else {
        return None;
    };
    if first == "crate" || first == "clipkeep" {
        return Some((Vec::new(), rest));
    }
    if first != "super" {
        return None;
    }
    let mut base = module.to_vec();
    base.pop();
    while let [TokenTree::Ident(word), more @ ..] = rest
        && word == "super"
    {
        base.pop();
        rest = after_colons(more)?;
    }
    Some((base, rest))
}

fn after_colons(tokens: &[TokenTree]) -> Option<&[TokenTree]> {
    match tokens {
        [TokenTree::Punct(one), TokenTree::Punct(two), rest @ ..]
            if one.as_char() == ':' && two.as_char() == ':' =>
        {
            Some(rest)
        }
        _ => None,
    }
}

/// The paths that `tokens`, what follows `base::`, lead to: one, or one for each branch of `{…}`.
fn leaves(tokens: &[TokenTree], base: &mut Vec<String>, imports: &mut Vec<Import>) {
    let depth = base.len();
    match tokens {
        [TokenTree::Group(branches), ..] if branches.delimiter() == Delimiter::Brace => {
            let tokens: Vec<TokenTree> = branches.stream().into_iter().collect();
            let comma = |token: &TokenTree| matches!(token, TokenTree::Punct(mark) if mark.as_char() == ',');
            for branch in tokens.split(comma) {
                leaves(branch, base, imports);
            }
        }
        [first @ TokenTree::Ident(name), rest @ ..] => {
            base.push(name.to_string());
            match after_colons(rest) {
                Some(more) => leaves(more, base, imports),
                None => imports.push(Import {
                    line: line(first),
                    path: base.clone(),
                }),
            }
            base.truncate(depth);
        }
        // `*`, or the `<` of a turbofish.
        [first @ TokenTree::Punct(mark), ..] => {
            let path = [&base[..], &[mark.to_string()]].concat();
            imports.push(Import {
                line: line(first),
                path,
            });
        }
        _ => {}
    }
}
