//! The configuration: what cannot work is refused with a word on what and where, and what is printed loads again.

use std::{path::PathBuf, process::Command};

use slotcast_net::config::Config;

/// What is said about settings that have to be refused.
fn refusal(settings: &[&str]) -> String {
    let settings: Vec<String> = settings.iter().map(|setting| setting.to_string()).collect();
    match Config::load(None, &settings).and_then(|config| config.data_options().map(|_| config)) {
        Ok(_) => panic!("{settings:?} was taken"),
        Err(error) => format!("{error:#}"),
    }
}

fn assert_refused(settings: &[&str], words: &[&str]) {
    let said = refusal(settings);
    for word in words {
        assert!(said.contains(word), "{settings:?}: {said:?} does not say {word:?}");
    }
}

fn file(name: &str, text: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, text).unwrap();
    (dir, path)
}

/// Exit status, standard output and standard error of `slotcast check-config`.
fn check_config(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_slotcast"))
        .arg("check-config")
        .args(arguments)
        .env("RUST_BACKTRACE", "1")
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn unknown_keys_are_named_wherever_they_stand() {
    for (text, key) in [
        ("slots = 7", "slots is not known"),
        ("[session]\nclient_max = 7", "session.client_max is not known: did you mean session.clients_max?"),
        ("[data]\nlease = \"3s\"", "data.lease is not known"),
        (
            "[[nodes]]\nid = \"a\"\naddr = \"127.0.0.1:1\"\nslots = [0, 1023]\nweight = 3",
            "unknown field `weight`",
        ),
        ("[sesion]\ncores = 1", "sesion.cores is not known: did you mean session.cores?"),
        ("push_batch_max = 3", "push_batch_max is not known: did you mean session.push_batch_max?"),
    ] {
        let (_dir, path) = file("slotcast.toml", text);
        let said = format!("{:#}", Config::load(Some(&path), &[]).unwrap_err());
        assert!(said.contains(key), "{said}");
        assert!(said.contains("slotcast.toml"), "{said}");
        assert!(said.contains("check-config prints all keys") || said.contains("weight"), "{said}");
    }
    assert_refused(&["session.client_max=7"], &["session.client_max is not known"]);
    assert_refused(&["push_batch_mx=7"], &["did you mean session.push_batch_max?"]);
}

#[test]
fn settings_that_are_no_settings_are_named() {
    assert_refused(&["session.cores"], &["\"session.cores\" is not of the form section.key=value"]);
    assert_refused(
        &["session.cores=many"],
        &["session.cores = \"many\" has to be a whole number from 1 to 256"],
    );
    assert_refused(
        &["session.push_batch_max=-1"],
        &["push_batch_max = -1 has to be a whole number from 1 to 128"],
    );
    assert_refused(
        &["data.session_lease=500"],
        &["data.session_lease = 500 has to be a duration such as 500ms"],
    );
    assert_refused(
        &["data.snapshot_rate=1MB"],
        &["data.snapshot_rate = \"1MB\" has to be bytes as a whole number"],
    );
    assert_refused(&["data.storage=paper"], &["data.storage = \"paper\" has to be none, disk, tmpfs"]);
    assert_refused(&["session.cpu=first"], &["has to be the number of a CPU"]);
    assert_refused(
        &["data.http=localhost"],
        &["data.http = \"localhost\" has to be an IP and port such as 127.0.0.1:7600"],
    );
    assert_refused(&["slot_count=1024", "slot_count.of=3"], &["slot_count in slot_count.of is no section"]);
    assert_refused(&["session=3"], &["session = 3 has to be a section"]);
    assert_refused(&["nodes=[{id=\"a\",addr=\"127.0.0.1:1\",slots=[0]}]"], &["slots"]);
    assert_refused(&["nodes=[{addr=\"127.0.0.1:1\",slots=[0,1023]}]"], &["missing field `id`"]);
}

#[test]
fn files_that_are_not_there_or_not_toml_are_named() {
    let said = format!("{:#}", Config::load(Some("/nowhere/slotcast.toml".as_ref()), &[]).unwrap_err());
    assert!(said.contains("cannot read the configuration file /nowhere/slotcast.toml"), "{said}");
    let (_dir, path) = file("broken.toml", "slot_count = 1024\n[session\ncores = 1");
    let said = format!("{:#}", Config::load(Some(&path), &[]).unwrap_err());
    assert!(said.contains("broken.toml is not valid TOML") && said.contains("line 2"), "{said}");
}

#[test]
fn members_of_a_cluster_that_nobody_could_reach_or_tell_apart_are_refused() {
    let peers = "meta.peers=[\"127.0.0.1:1\"]";
    for (setting, words) in [
        ("data.id=\"\"", "data.id"),
        ("data.zone=\"a\\nb\"", "data.zone"),
        ("data.shards=0", "data.shards = 0 has to be a whole number from 1 to 256"),
        ("data.listen=0.0.0.0:7620", "data.advertise is needed"),
        ("data.replica_lag_max=0s", "data.replica_lag_max"),
    ] {
        assert_refused(&[peers, setting], &[words]);
    }
    assert_refused(&[peers, "data.listen=127.0.0.1:65535", "data.shards=2"], &["shard 1 has no port"]);
    // The static table means nothing to a member, and to nobody else does the rest.
    let of = |settings: &[&str]| {
        let settings: Vec<String> = settings.iter().map(|it| it.to_string()).collect();
        Config::load(None, &settings).unwrap().data_options().unwrap()
    };
    let member = of(&[
        peers,
        "nodes=[]",
        "data.id=a",
        "data.listen=0.0.0.0:7",
        "data.advertise=10.0.0.1",
        "data.zone=z",
    ]);
    let cluster = member.cluster.unwrap();
    assert_eq!((cluster.id.as_str(), cluster.zone.as_str()), ("a", "z"));
    assert_eq!((cluster.ip.to_string(), member.listen.port()), ("10.0.0.1".to_string(), 7));
    assert!(of(&["data.shards=0"]).cluster.is_none());
}

#[test]
fn slot_tables_with_contradictions_are_refused() {
    let node = |id: &str, port: u16, first: u32, last: u32| {
        format!("{{id=\"{id}\",addr=\"127.0.0.1:{port}\",slots=[{first},{last}]}}")
    };
    let table = |nodes: &[String]| format!("nodes=[{}]", nodes.join(","));
    let overlapping = table(&[node("data-1", 1, 0, 600), node("b", 2, 600, 1023)]);
    assert_refused(&[&overlapping], &["slot 600 is given to node b and to another node"]);
    let missing = table(&[node("data-1", 1, 0, 599), node("b", 2, 601, 1023)]);
    assert_refused(&[&missing], &["slot 600 is given to no node"]);
    let outside = table(&[node("data-1", 1, 0, 1024)]);
    assert_refused(&[&outside], &["node data-1: slots [0, 1024] do not lie in 0..1024"]);
    let backwards = table(&[node("data-1", 1, 1023, 0)]);
    assert_refused(&[&backwards], &["slots [1023, 0]"]);
    let same_name = table(&[node("data-1", 1, 0, 511), node("data-1", 2, 512, 1023)]);
    assert_refused(&[&same_name], &["two nodes have the id \"data-1\""]);
    let same_port = table(&[node("data-1", 1, 0, 511), node("b", 1, 512, 1023)]);
    assert_refused(&[&same_port], &["node b", "127.0.0.1:1", "another shard's"]);
    assert_refused(&["nodes=[]"], &["at least one data node"]);
    assert_refused(&["data.id=elsewhere"], &["data.id = \"elsewhere\" is not among the nodes"]);
    let node = "{id=\"data-1\",addr=\"127.0.0.1:1\",slots=[0,1023],shards=0}";
    assert_refused(&[&format!("nodes=[{node}]")], &["node data-1: shards = 0 has to be from 1 to 256"]);
    let node = "{id=\"data-1\",addr=\"127.0.0.1:65535\",slots=[0,1023],shards=2}";
    assert_refused(&[&format!("nodes=[{node}]")], &["node data-1: shard 1 has no port"]);
}

#[test]
fn values_that_contradict_each_other_are_refused() {
    for count in ["0", "1000", "65536"] {
        let setting = format!("slot_count={count}");
        assert_refused(&[&setting], &[&format!("slot_count = {count} has to be a power of two up to 32768")]);
    }
    assert_refused(&["slot_count=512"], &["do not lie in 0..512"]);
    for (settings, words) in [
        (&["session.client_disconnect_grace=31s"][..], "session.client_disconnect_grace"),
        (&["data.session_lease=2s"], "a third of data.session_lease"),
        (&["session.heartbeat_interval=0s"], "session.heartbeat_interval = 0s has to be above 0"),
        (&["data.link_timeout=0s"], "data.link_timeout = 0s has to be above 0"),
        (&["session.push_interval_min=5s"], "session.push_interval_min has to be below"),
        (&["session.slow_client_eviction=4s"], "at most session.slow_client_eviction"),
        (&["session.push_batch_max=0"], "session.push_batch_max = 0 has to be a whole number from 1 to 128"),
        (
            &["session.push_batch_max=129"],
            "session.push_batch_max = 129 has to be a whole number from 1 to 128",
        ),
        (&["session.cores=0"], "session.cores = 0 has to be a whole number from 1 to 256"),
        (&["session.clients_max=0"], "session.clients_max = 0 has to be a whole number, at least 1"),
        (&["session.accept_burst=0"], "session.accept_burst = 0 has to be a whole number, at least 1"),
        (&["session.listen=127.0.0.1:9", "session.http=127.0.0.1:9"], "listen and session.http are the same"),
    ] {
        assert_refused(settings, &[words]);
        let told = refusal(settings);
        assert_eq!(told.contains("contradicts itself"), !words.contains(" = "), "{told}");
    }
}

#[test]
fn settings_go_over_the_file_and_the_last_one_counts() {
    let (_dir, path) = file("slotcast.toml", "[session]\ncores = 2\nclients_max = 7");
    let settings = ["session.cores=3".to_string(), "session.cores=4".to_string()];
    let config = Config::load(Some(&path), &settings).unwrap();
    assert_eq!((config.session.cores, config.session.clients_max), (4, 7));
}

#[test]
fn the_printed_defaults_load_again_and_print_the_same() {
    let (status, printed, said) = check_config(&[]);
    assert_eq!((status, said.as_str()), (Some(0), ""));
    for key in ["slot_count", "[[nodes]]", "[data]", "[session]", "push_interval_max", "session_lease"] {
        assert!(printed.contains(key), "{key} is missing in {printed}");
    }
    let (_dir, path) = file("printed.toml", &printed);
    let path = path.to_str().unwrap();
    assert_eq!(check_config(&["--config", path]), (Some(0), printed, String::new()));
    let (status, changed, _) = check_config(&["--config", path, "--set", "session.push_batch_max=16"]);
    assert_eq!(status, Some(0));
    assert!(changed.contains("push_batch_max = 16"), "{changed}");
}

#[test]
fn the_process_ends_with_an_error_that_names_the_key() {
    let (status, printed, said) = check_config(&["--set", "session.client_max=7"]);
    assert_eq!((status, printed.as_str()), (Some(2), ""));
    assert!(
        said.starts_with("error: session.client_max is not known") && said.lines().count() == 1,
        "{said}"
    );
    let (status, _, said) = check_config(&["--set", "slot_count=1000"]);
    assert_eq!(status, Some(2));
    assert!(said.contains("slot_count = 1000 has to be a power of two"), "{said}");
    let (status, _, said) = check_config(&["--config", "/nowhere/slotcast.toml"]);
    assert_eq!(status, Some(2));
    assert!(said.contains("/nowhere/slotcast.toml"), "{said}");
    let (status, _, said) = check_config(&["--sett", "x"]);
    assert_eq!(status, Some(2));
    assert!(said.contains("--set"), "{said}");
}

#[test]
fn the_page_on_tuning_has_every_setting() {
    let page = include_str!("../../../docs/tuning.md");
    let table = toml::Table::try_from(Config::default()).unwrap();
    // Who a process is and where it listens is nothing to tune.
    let plain = ["data.id", "data.http", "data.listen", "data.zone", "session.listen", "session.http"];
    let mut missing = Vec::new();
    for section in ["data", "session"] {
        for key in table[section].as_table().unwrap().keys() {
            let name = format!("{section}.{key}");
            if !plain.contains(&name.as_str()) && !page.contains(&format!("`{name}`")) {
                missing.push(name);
            }
        }
    }
    assert!(missing.is_empty(), "docs/tuning.md does not have {missing:?}");
}
