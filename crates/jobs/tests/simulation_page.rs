//! docs/testing.md names tests. They are there.

use std::fs;
use std::path::Path;

fn collect(directory: &Path, text: &mut String) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, text);
        } else if path.extension().is_some_and(|e| e == "rs") {
            text.push_str(&fs::read_to_string(&path).unwrap());
        }
    }
}

#[test]
fn every_test_that_the_page_names_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let page = fs::read_to_string(root.join("docs/testing.md")).unwrap();
    let mut sources = String::new();
    collect(&root.join("crates"), &mut sources);
    collect(&root.join("trials"), &mut sources);
    let words = page.split('`').skip(1).step_by(2);
    let named: Vec<&str> = words.filter(|word| word.matches('_').count() >= 2).collect();
    assert!(named.len() > 80, "{} tests are named", named.len());
    for name in named {
        // One test for each version of PostgreSQL is made by a macro from this stem.
        let there = match name.strip_suffix("_*") {
            Some(stem) => sources.contains(&format!(" {stem}_1")) || sources.contains(stem),
            None => sources.contains(&format!("fn {name}(")),
        };
        assert!(there, "docs/testing.md names `{name}`, and it is not there");
    }
}
