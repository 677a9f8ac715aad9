//! What operators ask and change at run time, over real sockets: by HTTP and by `slotcast ctl`.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    process::Command,
    time::Instant,
};

use serde_json::{Value, json};
use slotcast_engine::{id::DataId, limits::SLOTS_DEFAULT};
use slotcast_net::client::Update;

use crate::{
    cluster::{Cluster, PATIENCE, View, get, metric, until_acknowledged, until_list, until_metric},
    raw::Raw,
};

fn id(service: &str) -> DataId {
    DataId::new("public", "default", service).unwrap()
}

fn post(addr: SocketAddr, path: &str, body: &str) -> (u16, Value) {
    let mut stream = TcpStream::connect(addr).unwrap();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all((head + body).as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body).unwrap_or_default();
    (status, serde_json::from_str(body).unwrap_or(Value::Null))
}

fn ask(addr: SocketAddr, path: &str) -> Value {
    let (status, text) = get(addr, path);
    assert_eq!(status, 200, "{path}: {text}");
    serde_json::from_str(&text).unwrap()
}

/// Asks until the answer is as wanted.
fn until(addr: SocketAddr, path: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let begin = Instant::now();
    loop {
        let answer = ask(addr, path);
        if wanted(&answer) {
            return answer;
        }
        assert!(begin.elapsed() < PATIENCE, "{path} is {answer:#}");
    }
}

/// Exit status, standard output and standard error of `slotcast ctl`.
fn ctl(addr: SocketAddr, words: &[&str]) -> (bool, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_slotcast"));
    let output = command.args(["ctl", "--target", &addr.to_string()]).args(words).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.success(), text(output.stdout), text(output.stderr))
}

fn rounds(status: &Value) -> u64 {
    status[0]["rounds"].as_u64().unwrap()
}

#[test]
fn compaction_is_held_asked_for_and_let_go_on_over_http() {
    let cluster =
        Cluster::start(2, 1, &["data.compaction_interval=20ms", "data.compaction_sleep_interval=1ms"]);
    let addr = cluster.data.admin.addr;
    until(addr, "/admin/compaction", |status| rounds(status) > 2);
    let (status, paused) = post(addr, "/admin/compaction/pause", "");
    assert_eq!((status, paused.as_array().map(Vec::len)), (200, Some(2)), "one answer per shard");
    for shard in [&paused[0], &paused[1]] {
        assert_eq!((&shard["state"], &shard["due_in_ms"]), (&json!("paused"), &Value::Null));
        assert!(shard["held_up_by"][0].as_str().unwrap().contains("paused by an operator"));
    }
    // A round that was asked for ends, and nothing follows it.
    let before = rounds(&paused);
    post(addr, "/admin/compaction/run", "");
    let after = until(addr, "/admin/compaction", |status| rounds(status) > before);
    assert_eq!((rounds(&after), &after[0]["state"]), (before + 1, &json!("paused")));
    until_metric(addr, "data_compaction_state", "state=\"paused\"", |shards| shards == 2.0);
    assert_eq!(rounds(&ask(addr, "/admin/compaction")), before + 1, "it is still held");
    let (_, resumed) = post(addr, "/admin/compaction/resume", "");
    assert_ne!(resumed[0]["state"], json!("paused"));
    until(addr, "/admin/compaction", |status| rounds(status) > before + 3);
    cluster.stop();
}

#[test]
fn settings_are_checked_by_name_and_answered_with_their_old_value() {
    let cluster = Cluster::start(2, 1, &[]);
    let addr = cluster.data.admin.addr;
    let body = json!({"compaction_batch_limit": 5000, "compaction_interval": "10s", "data.arena_utilization_min": 0.25});
    let (status, answer) = post(addr, "/admin/compaction/set", &body.to_string());
    assert_eq!(status, 200, "{answer}");
    let changes = answer["changes"].as_array().unwrap();
    let of = |key: &str| changes.iter().find(|change| change["key"] == json!(key)).unwrap().clone();
    assert_eq!(
        of("compaction_batch_limit"),
        json!({"key": "compaction_batch_limit", "old": "1000", "new": "5000"})
    );
    assert_eq!(of("compaction_interval"), json!({"key": "compaction_interval", "old": "1s", "new": "10s"}));
    assert_eq!(of("arena_utilization_min")["new"], json!("0.25"));
    assert!(answer["note"].as_str().unwrap().contains("until the process ends"));
    for (body, words) in [
        (
            json!({"compaction_interval": "5s", "compaction_batch_limit": 0}),
            ["compaction_batch_limit", "from 1"],
        ),
        (json!({"compaction_interval": "soon"}), ["compaction_interval", "duration"]),
        (json!({"session_lease": "5s"}), ["session_lease", "compaction_interval"]),
        (json!({"compaction_off_peak": ["1-2"]}), ["compaction_off_peak", "01:00-05:00"]),
        (json!({}), ["no setting", "compaction_interval"]),
        (json!([1]), ["JSON object", "settings"]),
    ] {
        let (status, answer) = post(addr, "/admin/compaction/set", &body.to_string());
        let said = answer["error"].as_str().unwrap_or_default();
        assert!(status == 400 && words.iter().all(|word| said.contains(word)), "{body}: {status} {said}");
    }
    let status = ask(addr, "/admin/compaction");
    for shard in [&status[0], &status[1]] {
        assert_eq!(shard["settings"]["compaction_interval"], json!("10s"), "a refused set changes nothing");
        assert_eq!(shard["settings"]["compaction_batch_limit"], json!("5000"));
    }
    post(addr, "/admin/compaction/set", &json!({"compaction_off_peak": ["00:00-24:00"]}).to_string());
    until(addr, "/admin/compaction", |status| status[0]["off_peak"] == json!(true));
    cluster.stop();
}

#[test]
fn dead_memory_and_old_history_go_when_a_round_is_run() {
    let cluster = Cluster::start(1, 1, &["data.compaction_interval=1day", "slot_count=1", SLOT]);
    let addr = cluster.data.admin.addr;
    // The first round comes with the start.
    until(addr, "/admin/compaction", |status| rounds(status) >= 1);
    // So much will be dead that it would not wait for the next.
    post(addr, "/admin/compaction/pause", "");
    let client = cluster.client(0);
    let services: Vec<DataId> = (0..200).map(|number| id(&format!("service-{number}"))).collect();
    let registrations: Vec<_> =
        services.iter().map(|service| client.publish(service, "host", "", &[1; 800]).unwrap()).collect();
    for (number, (service, registration)) in services.iter().zip(&registrations).enumerate() {
        if number % 10 != 0 {
            client.republish(*registration, service, "host", "", &[2; 800]).unwrap();
        }
    }
    let view = &mut View::default();
    client.subscribe(&services[199]).unwrap();
    until_list(&client, view, &services[199], &[&[2; 800]]);
    let memory = ask(addr, "/admin/memory");
    let kinds: u64 = memory[0]["bytes"].as_object().unwrap().values().filter_map(Value::as_u64).sum();
    assert_eq!(memory[0]["total_bytes"], json!(kinds));
    assert_eq!((&memory[0]["publishers"], &memory[0]["data_ids"]), (&json!(200), &json!(200)));
    assert!(memory[0]["bytes"]["payload"].as_u64().unwrap() > 200 * 800);
    assert!(memory[0]["bytes_per_publisher"].as_f64().unwrap() > 800.0);
    until_metric(addr, "data_memory_bytes", "kind=\"payload\"", |bytes| bytes > 160_000.0);
    let before = ask(addr, "/admin/compaction");
    let dead = before[0]["dead_due_bytes"].as_u64().unwrap();
    assert!(dead > 10_000 && before[0]["history_entries"].as_u64().unwrap() >= 200, "{before:#}");
    post(addr, "/admin/compaction/set", &json!({"change_log_age": "0s"}).to_string());
    post(addr, "/admin/compaction/run", "");
    let after = until(addr, "/admin/compaction", |status| rounds(status) > rounds(&before));
    assert_eq!(
        (&after[0]["dead_due_bytes"], &after[0]["history_entries"]),
        (&json!(0), &json!(0)),
        "{after:#}"
    );
    until_metric(addr, "data_segments_emptied", "", |segments| segments > 0.0);
    assert!(metric(addr, "data_compaction_step_seconds_count", "") > 0.0);
    // Whoever subscribes now gets everything all the same.
    let late = cluster.client(0);
    late.subscribe(&services[0]).unwrap();
    until_list(&late, &mut View::default(), &services[0], &[&[1; 800]]);
    drop((client, late));
    cluster.stop();
}

#[test]
fn who_went_together_is_held_back_until_an_operator_says_that_they_are_gone() {
    let settings = [
        "data.session_lease=1s",
        "session.heartbeat_interval=200ms",
        "session.client_disconnect_grace=100ms",
    ];
    let cluster = Cluster::start(1, 1, &settings);
    let (node, addr) = (cluster.data.server.addrs[0], cluster.data.admin.addr);
    let client = cluster.client(0);
    client.subscribe(&id("left")).unwrap();
    for session in [7001, 7002] {
        let mut link = Raw::link(node, session, SLOTS_DEFAULT);
        link.publish(&id("left"), session, 1, 1, b"left");
    }
    let view = &mut View::default();
    until_list(&client, view, &id("left"), &[b"left", b"left"]);
    let held = until(addr, "/admin/leases", |leases| leases[0]["held_back"] == json!(2));
    assert_eq!((&held[0]["sessions"], &held[0]["released"]), (&json!(3), &json!(0)));
    assert_eq!(held[0]["silent"][0]["session"], json!(format!("{:016x}", 7001)));
    assert!(held[0]["silent"][0]["silent_s"].as_f64().unwrap() >= 1.0, "{held:#}");
    until_metric(addr, "data_session_leases_held_back", "", |count| count == 2.0);
    let (ok, told, _) = ctl(addr, &["leases"]);
    assert!(ok && told.contains("0000000000001b59") && told.contains("--end-held-back"), "{told}");
    assert_eq!(ask(addr, "/admin/memory")[0]["publishers"], json!(2), "nothing is removed");
    let (ok, told, _) = ctl(addr, &["--json", "leases", "--end-held-back"]);
    let told: Value = serde_json::from_str(&told).unwrap();
    assert!(ok && told[0]["released"] == json!(2), "{told:#}");
    until_list(&client, view, &id("left"), &[]);
    let after = until(addr, "/admin/leases", |leases| leases[0]["held_back"] == json!(0));
    assert_eq!(after[0]["sessions"], json!(1));
    let (status, answer) = post(cluster.sessions[0].admin.addr, "/admin/leases/end", "");
    assert!(status == 404 && answer["error"].as_str().unwrap().contains("data node"), "{answer}");
    drop(client);
    cluster.stop();
}

/// One slot, so that everything lies in one arena.
const SLOT: &str = "nodes=[{id=\"data-1\",addr=\"127.0.0.1:0\",shards=1,slots=[0,0]}]";

#[test]
fn the_largest_of_everything_is_told_by_those_who_know_it() {
    let cluster = Cluster::start(2, 1, &[]);
    let (data, session) = (cluster.data.admin.addr, cluster.sessions[0].admin.addr);
    let (one, two) = (cluster.client(0), cluster.client(0));
    for host in 0..3 {
        one.publish(&id("three"), &format!("host-{host}"), "", b"a").unwrap();
    }
    two.publish(&DataId::new("billing", "default", "big").unwrap(), "host", "", &[7; 3000]).unwrap();
    two.publish(&id("unread"), "host", "", b"a").unwrap();
    for client in [&one, &two] {
        client.subscribe(&id("three")).unwrap();
        until_list(client, &mut View::default(), &id("three"), &[b"a", b"a", b"a"]);
    }
    let publishers = |memory: &Value| -> u64 {
        memory.as_array().unwrap().iter().filter_map(|shard| shard["publishers"].as_u64()).sum()
    };
    until(data, "/admin/memory", |memory| publishers(memory) == 5);
    let top = |addr, what: &str| ask(addr, &format!("/admin/top?what={what}&limit=5"));
    let first = |report: &Value| (report["rows"][0]["key"].clone(), report["rows"][0]["value"].clone());
    let three = json!("public/default/three");
    assert_eq!(first(&top(data, "data-ids")), (three.clone(), json!(3.0)));
    assert_eq!(first(&top(data, "namespaces")), (json!("public"), json!(4.0)));
    assert_eq!(first(&top(data, "subscribed")), (three.clone(), json!(1.0)), "one session reads it");
    let publishers = top(data, "publishers");
    assert!(publishers["rows"][0]["key"].as_str().unwrap().starts_with("billing/default/big "));
    assert_eq!((&publishers["of"], &publishers["method"]), (&json!(5.0), &json!("exact")));
    let cold = top(data, "cold");
    let keys: Vec<&str> =
        cold["rows"].as_array().unwrap().iter().map(|row| row["key"].as_str().unwrap()).collect();
    assert!(keys.contains(&"public/default/unread") && !keys.contains(&"public/default/three"), "{keys:?}");
    let changed = top(data, "changed");
    assert_eq!((&changed["method"], &changed["half_life_s"]), (&json!("space-saving"), &json!(60.0)));
    assert!(changed["error_max"].as_f64().unwrap() < 0.1, "{changed:#}");
    let requests = top(data, "requests");
    let kinds: Vec<&str> =
        requests["rows"].as_array().unwrap().iter().map(|row| row["key"].as_str().unwrap()).collect();
    assert!(["write", "subscribe", "heartbeat"].iter().all(|kind| kinds.contains(kind)), "{kinds:?}");
    assert!(top(data, "clients")["rows"][0]["value"].as_f64().unwrap() >= 3.0);
    assert_eq!(top(data, "connections")["rows"].as_array().unwrap().len(), 1, "one session, two links");

    assert_eq!(first(&top(session, "subscribed")), (three.clone(), json!(2.0)), "two clients do");
    assert_eq!(first(&top(session, "changed")).0, three);
    assert_eq!(top(session, "connections")["rows"].as_array().unwrap().len(), 2);
    let clients = top(session, "clients");
    assert_eq!((clients["rows"].as_array().unwrap().len(), &clients["method"]), (2, &json!("space-saving")));
    let (status, text) = get(session, "/admin/top?what=cold");
    assert!(status == 404 && text.contains("ask a data node"), "{text}");
    let (status, text) = get(session, "/admin/compaction");
    assert!(status == 404 && text.contains("data.http"), "{text}");
    for path in ["/admin/top?what=nothing", "/admin/top?what=cold&limit=0", "/admin/top?what=cold&limit=1001"]
    {
        let (status, text) = get(data, path);
        assert!(status == 400 && text.contains("error"), "{path}: {status} {text}");
    }
    drop((one, two));
    cluster.stop();
}

#[test]
fn ctl_says_the_same_as_a_table_or_as_json() {
    let cluster = Cluster::start(2, 1, &[]);
    let (data, session) = (cluster.data.admin.addr, cluster.sessions[0].admin.addr);
    let client = cluster.client(0);
    client.publish(&id("ctl"), "host-1", "", b"a").unwrap();
    until_acknowledged(&client);

    let (good, table, _) = ctl(data, &["compaction", "pause"]);
    assert!(
        good && table.contains("| state ") && table.contains("paused") && table.contains("shard 1"),
        "{table}"
    );
    let (_, text, _) = ctl(data, &["compaction", "status", "--json"]);
    let status: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&status[0]["state"], &status[1]["state"]), (&json!("paused"), &json!("paused")));
    assert!(ctl(data, &["compaction", "resume"]).0 && ctl(data, &["compaction", "run"]).0);
    let (good, table, _) =
        ctl(data, &["compaction", "set", "compaction_batch_limit=77", "change_log_age=1min"]);
    assert!(
        good && table.contains("| 1000") && table.contains("| 77") && table.contains("configuration file"),
        "{table}"
    );
    let (good, _, error) = ctl(data, &["compaction", "set", "compaction_batch_limit=none"]);
    assert!(!good && error.contains("compaction_batch_limit") && error.contains("whole number"), "{error}");
    let (good, _, error) = ctl(data, &["compaction", "set", "compaction_batch_limit"]);
    assert!(!good && error.contains("key=value"), "{error}");

    let (good, table, _) = ctl(data, &["memory"]);
    assert!(good && table.contains("payload") && table.contains(" all |"), "{table}");
    let (good, table, _) = ctl(data, &["top"]);
    assert!(good && table.contains("public/default/ctl") && table.contains("exact"), "{table}");
    let (good, table, _) = ctl(session, &["top", "--what", "clients", "--limit", "3"]);
    assert!(good && table.contains("error at most") && table.contains("Space-Saving"), "{table}");
    let (_, text, _) = ctl(session, &["--json", "top", "--what", "requests"]);
    let report: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&report["what"], &report["unit"]), (&json!("requests"), &json!("requests")));

    let (good, _, error) = ctl(session, &["compaction", "status"]);
    assert!(!good && error.contains("ask a data node"), "{error}");
    let nobody = TcpStream::connect(data).unwrap().local_addr().unwrap();
    let (good, _, error) = ctl(nobody, &["memory"]);
    assert!(!good && error.contains(&nobody.to_string()) && error.contains("nothing listens on"), "{error}");
    drop(client);
    cluster.stop();
}

#[test]
fn while_pushes_are_stopped_clients_are_told_nothing_and_afterwards_what_is_so_then() {
    let cluster = Cluster::start(2, 2, &[]);
    let (session, other) = (cluster.sessions[0].admin.addr, cluster.sessions[1].admin.addr);
    let (writer, reader) = (cluster.client(0), cluster.client(0));
    let held = writer.publish(&id("held"), "host", "", b"a").unwrap();
    let view = &mut View::default();
    reader.subscribe(&id("held")).unwrap();
    until_list(&reader, view, &id("held"), &[b"a"]);

    let (good, table, _) = ctl(session, &["stop-push"]);
    assert!(good && table.contains("stopped for") && table.contains("      2 |"), "{table}");
    let (code, said) = get(session, "/readyz");
    assert!(code == 200 && said.contains("stopped pushes") && said.contains("resume-push"), "{said}");
    assert_eq!(metric(session, "session_push_stopped", ""), 1.0);
    assert_eq!(metric(other, "session_push_stopped", ""), 0.0);

    let pushed = || (metric(session, "session_pushes", ""), metric(session, "session_snapshots", ""));
    let (before, diffs) = (pushed(), metric(session, "session_diffs_received", ""));
    writer.republish(held, &id("held"), "host", "", b"b").unwrap();
    until_acknowledged(&writer);
    writer.republish(held, &id("held"), "host", "", b"c").unwrap();
    until_acknowledged(&writer);
    until_metric(session, "session_diffs_received", "", |count| count > diffs);
    // What is its own reaches the reader, by a write that would have brought the diffs along.
    reader.publish(&id("own"), "host", "", b"own").unwrap();
    crate::cluster::until(&reader, |update| {
        assert!(!matches!(update, Update::Diff { .. } | Update::Snapshot { .. }), "{update:?}");
        matches!(update, Update::Acknowledged { .. })
    });
    let late = cluster.client(0);
    late.subscribe(&id("held")).unwrap();
    late.publish(&id("late"), "host", "", b"late").unwrap();
    crate::cluster::until(&late, |update| {
        assert!(!matches!(update, Update::Snapshot { .. }), "{update:?}");
        matches!(update, Update::Acknowledged { .. })
    });
    assert_eq!(pushed(), before);
    // Clients of the other session are told all the while.
    let elsewhere = cluster.client(1);
    elsewhere.subscribe(&id("held")).unwrap();
    until_list(&elsewhere, &mut View::default(), &id("held"), &[b"c"]);

    let both = [session.to_string(), other.to_string()];
    let (good, text, _) = ctl(session, &["--json", "resume-push", &both[0], &both[1]]);
    let told: Value = serde_json::from_str(&text).unwrap();
    assert!(good && both.iter().all(|addr| told[addr][0]["stopped"] == json!(false)), "{text}");
    until_list(&reader, view, &id("held"), &[b"c"]);
    until_list(&late, &mut View::default(), &id("held"), &[b"c"]);
    assert_eq!((view.removals_seen, metric(session, "session_push_stopped", "")), (0, 0.0));
    assert_eq!(get(session, "/readyz").1, "ready\n");
    let (good, _, error) = ctl(cluster.data.admin.addr, &["stop-push"]);
    assert!(!good && error.contains("ask a session"), "{error}");
    drop((writer, reader, late, elsewhere));
    cluster.stop();
}
