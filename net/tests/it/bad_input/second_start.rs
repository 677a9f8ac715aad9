//! A second process where one runs already: it says which address is taken and ends, and the first goes on.

use std::{
    io::{BufRead, BufReader, Read},
    process::{Command, Stdio},
};

use slotcast_net::{
    config::Config,
    process::{DataProcess, SessionProcess},
};

use crate::{bad_input::Scene, cluster::get};

/// Settings of a second process of each role; every port of its own is the system's choice.
struct Ports {
    data: String,
    data_http: String,
    session: String,
    session_http: String,
}

impl Ports {
    fn free() -> Self {
        let free = || "127.0.0.1:0".to_string();
        Self { data: free(), data_http: free(), session: free(), session_http: free() }
    }

    fn settings(&self) -> Vec<String> {
        vec![
            format!("nodes=[{{id=\"data-1\",addr=\"{}\",slots=[0,1023]}}]", self.data),
            format!("data.http={}", self.data_http),
            format!("session.listen={}", self.session),
            format!("session.http={}", self.session_http),
            "session.clients_max=10".into(),
        ]
    }

    fn config(&self) -> Config {
        Config::load(None, &self.settings()).unwrap()
    }
}

/// Runs the binary, which is expected to end by itself, and returns what it says.
fn run(role: &str, settings: &[String]) -> String {
    let mut child = Command::new(env!("CARGO_BIN_EXE_slotcast"))
        .arg(role)
        .args(settings.iter().flat_map(|setting| ["--set", setting]))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first_line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut first_line).unwrap();
    if !first_line.is_empty() {
        child.kill().unwrap();
        child.wait().unwrap();
        panic!("{role} started: {first_line}");
    }
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1), "{said}");
    said
}

fn assert_names(said: &str, addr: &str) {
    assert!(said.contains(&format!("cannot listen on {addr}")), "{said}");
    assert!(said.contains("is another process running there?"), "{said}");
}

#[test]
fn a_second_data_node_on_a_port_in_use_says_so() {
    let mut scene = Scene::new(&[]);
    let taken = scene.cluster.data.server.addrs[0].to_string();
    let ports = Ports { data: taken.clone(), ..Ports::free() };
    let error = DataProcess::start(&ports.config()).err().unwrap();
    assert_names(&format!("{error:#}"), &taken);
    for role in ["data", "standalone"] {
        assert_names(&run(role, &ports.settings()), &taken);
    }
    scene.bystanders.assert_undisturbed();
    scene.stop();
}

#[test]
fn a_second_session_on_a_port_in_use_says_so() {
    for cores in [1, 2] {
        let mut scene = Scene::new(&[&format!("session.cores={cores}")]);
        let taken = scene.cluster.addr(0).to_string();
        let ports = Ports { session: taken.clone(), ..Ports::free() };
        for second_cores in [1, 2] {
            let mut settings = ports.settings();
            settings.push(format!("session.cores={second_cores}"));
            let config = Config::load(None, &settings).unwrap();
            let error = SessionProcess::start(&config, None).err().unwrap();
            assert_names(&format!("{error:#}"), &taken);
            assert_names(&run("session", &settings), &taken);
        }
        scene.bystanders.assert_undisturbed();
        scene.stop();
    }
}

#[test]
fn a_second_http_port_in_use_says_so_and_frees_what_was_opened_before() {
    let mut scene = Scene::new(&[]);
    let taken = scene.cluster.data.admin.addr.to_string();
    // An address that no other test uses, so that its ports stay free.
    let free = || {
        let listener = std::net::TcpListener::bind("127.9.8.7:0").unwrap();
        listener.local_addr().unwrap().to_string()
    };
    let (data, session) = (free(), free());
    let ports = Ports { data, data_http: taken.clone(), session, session_http: taken.clone() };
    for _ in 0..2 {
        let error = DataProcess::start(&ports.config()).err().unwrap();
        assert_names(&format!("{error:#}"), &taken);
        let error = SessionProcess::start(&ports.config(), None).err().unwrap();
        assert_names(&format!("{error:#}"), &taken);
    }
    for role in ["data", "session", "standalone"] {
        assert_names(
            &run(
                role,
                &Ports { data_http: taken.clone(), session_http: taken.clone(), ..Ports::free() }.settings(),
            ),
            &taken,
        );
    }
    assert_eq!(get(scene.cluster.data.admin.addr, "/healthz").0, 200);
    scene.bystanders.assert_undisturbed();
    scene.stop();
}
