use super::*;
use crate::config::LogLimits;

fn piece(text: &str) -> Piece<'_> {
    Piece { bytes: text.as_bytes(), cut: false }
}

fn place(dir: &std::path::Path) -> Place {
    let limits = LogLimits { file_bytes: 1 << 20, files: 4, total_bytes: 64 << 20 };
    Place { dir: dir.to_owned(), limits, components: ["web".to_owned()].into(), journal: None }
}

fn print(logs: &Logs, text: &str) {
    logs.push("web", "web-1", Stream::Stdout, piece(text), None);
}

fn texts(lines: &[Arc<LogLine>]) -> Vec<&str> {
    lines.iter().map(|line| line.line.as_str()).collect()
}

#[tokio::test]
async fn the_lines_of_one_process_are_told_apart() {
    let logs = Arc::new(Logs::open(Carried::default(), None));
    for (instance, line) in [("web-1", "a"), ("web-2", "b"), ("web-2", "c")] {
        logs.push("web", instance, Stream::Stderr, piece(line), None);
    }
    assert_eq!(logs.last_of("web", "web-2", 5), ["b", "c"]);
    assert_eq!(texts(&logs.last("web", 2).await), ["b", "c"]);
    assert_eq!(texts(&logs.last("db", 2).await), [""; 0]);
}

#[tokio::test]
async fn what_memory_has_no_more_comes_from_the_disk_once_and_in_order() {
    let dir = tempfile::tempdir().expect("a directory");
    let logs = Arc::new(Logs::open(Carried::default(), Some(place(dir.path()))));
    for number in 0..5000 {
        print(&logs, &format!("line {number}"));
    }
    let all = logs.last("web", 10_000).await;
    let expected: Vec<String> = (0..5000).map(|number| format!("line {number}")).collect();
    assert_eq!(texts(&all), expected);
    assert!(all.windows(2).all(|pair| pair[0].seq < pair[1].seq), "the numbers grow");
    // Step by step, as somebody who follows reads them.
    let (mut seen, mut after) = (Vec::new(), 0);
    loop {
        let next = logs.after("web", after, 777).await;
        let Some(last) = next.last() else { break };
        after = last.seq;
        seen.extend(next);
    }
    assert_eq!(texts(&seen), expected);
    logs.close().await;
}

#[tokio::test]
async fn memory_is_bounded_by_bytes_too() {
    let logs = Arc::new(Logs::open(Carried::default(), None));
    for _ in 0..LINES_MAX {
        print(&logs, &"x".repeat(4000));
    }
    let kept = logs.last("web", LINES_MAX).await;
    assert!((10..80).contains(&kept.len()), "{}", kept.len());
    let carried: usize = logs.carried().lines["web"].iter().map(bytes_of).sum();
    assert!(carried <= CARRIED_BYTES_MAX);
}

#[tokio::test]
async fn the_next_image_goes_on_without_a_gap_or_a_line_twice() {
    let dir = tempfile::tempdir().expect("a directory");
    let first = Arc::new(Logs::open(Carried::default(), Some(place(dir.path()))));
    for number in 0..300 {
        print(&first, &format!("line {number}"));
    }
    let after = first.last("web", 250).await[0].seq;
    let reader = first.reader();
    reader.leave("web-1.stdout".to_owned(), b"hal".to_vec());
    let ((), ()) = tokio::join!(first.pause(), async {
        reader.paused().await;
        drop(reader);
    });
    let carried = Carried { complete: true, ..first.carried() };
    first.close().await;
    let next = Arc::new(Logs::open(carried, Some(place(dir.path()))));
    assert_eq!(next.reader().found("web-1.stdout"), b"hal");
    print(&next, "line 300");
    let expected: Vec<String> = (51..=300).map(|number| format!("line {number}")).collect();
    assert_eq!(texts(&next.after("web", after, 1000).await), expected);
    next.close().await;
}

#[tokio::test]
async fn numbers_go_on_above_what_is_on_the_disk_after_a_crash() {
    let dir = tempfile::tempdir().expect("a directory");
    let far = 9_000_000_000_000_000; // a clock that was ahead
    let web = dir.path().join("web");
    std::fs::create_dir(&web).expect("a directory");
    let line = serde_json::json!({
        "seq": far, "at": "2255-01-01T00:00:00Z", "stream": "stdout", "instance": "web-1", "line": "old", "new_field": 1
    });
    std::fs::write(web.join("00000000000000000001.jsonl"), format!("{line}\n")).expect("written");
    let logs = Arc::new(Logs::open(Carried::default(), Some(place(dir.path()))));
    print(&logs, "new");
    let lines = logs.last("web", 10).await;
    assert_eq!(texts(&lines), ["old", "new"]);
    assert!(lines[1].seq > far);
    assert_eq!(texts(&logs.after("web", far, 10).await), ["new"]);
    logs.close().await;
}

#[tokio::test]
async fn who_waits_for_a_line_is_woken_by_its_own_component() {
    let logs = Arc::new(Logs::open(Carried::default(), None));
    let mut newest = logs.watch("web");
    let seen = *newest.borrow_and_update();
    logs.push("db", "db-1", Stream::Stdout, piece("x"), None);
    assert!(!newest.has_changed().expect("it lives"));
    print(&logs, "x");
    assert!(*newest.wait_for(|seq| *seq > seen).await.expect("it lives") > seen);
}
