//! docs/reliability.md: a row for every fault, and what it names as a test exists.

use std::fs;
use std::path::Path;

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn every_fault_has_a_row_and_its_tests_exist() {
    let page = read("docs/reliability.md");
    let scenarios = read("tests/torture/scenarios/mod.rs");
    let table = page.split("## The faults").nth(1).unwrap();
    let table = table.split("\n## ").next().unwrap();
    let mut number = 0;
    for row in table.lines() {
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        if cells.len() < 5 || cells[1].parse::<usize>().is_err() {
            continue;
        }
        number += 1;
        assert_eq!(cells[1], number.to_string(), "{row}");
        for cited in cells[3].split('`').skip(1).step_by(2) {
            match cited.split_once("::") {
                Some((module, test)) => {
                    let code = read(&format!("tests/it/{module}.rs"));
                    assert!(code.contains(&format!("fn {test}(")), "no test {cited}");
                }
                None => assert!(
                    scenarios.contains(&format!("\"{cited}\"")),
                    "no scenario {cited}"
                ),
            }
        }
    }
    assert_eq!(number, 52);
}
