//! The slot table in etcd 3, over its JSON gateway: several processes of the control plane, of which one leads.
//!
//! Two keys below `/slotcast/<cluster>/meta/`: `leader` holds the name of the process that leads and goes with that process's
//! etcd lease; `table` holds the table as a file would. A table is put by a transaction that compares both: the leader key
//! is the one that this process made, the table is the one that it read or wrote last. So of two processes that believe they
//! lead, one cannot store anything, and what is not stored is told to nobody.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use crate::{
    meta::store::{Lead, StoreError, TableStore, check_swap, decode_table, encode_table},
    wire::slot_table::SlotTable,
};

/// Longest wait for one answer.
const ANSWER_MAX: Duration = Duration::from_secs(1);

/// The store.
pub struct EtcdStore {
    agent: ureq::Agent,
    endpoints: Vec<String>,
    /// The endpoint that answered last.
    endpoint: usize,
    name: String,
    leader_key: String,
    table_key: String,
    ttl: Duration,
    lease: Option<i64>,
    /// Revision at which this process made the leader key.
    leads_since: Option<i64>,
    /// Revision and epoch of the table that was read or written last; zeros: none.
    table: (i64, u64),
    /// Revision of the whole when it was last asked who leads.
    seen: i64,
}

impl EtcdStore {
    /// A store behind `endpoints` (`http://host:port`), which are tried in turn. `name` tells this process to people; the
    /// lead ends when it says nothing for `ttl` (whole seconds, at least 1).
    pub fn new(endpoints: Vec<String>, cluster: &str, name: &str, ttl: Duration) -> Self {
        let config = ureq::Agent::config_builder();
        let config = config.timeout_global(Some(ANSWER_MAX)).http_status_as_error(false).build();
        Self {
            agent: config.into(),
            endpoints,
            endpoint: 0,
            name: name.into(),
            leader_key: STANDARD.encode(format!("/slotcast/{cluster}/meta/leader")),
            table_key: STANDARD.encode(format!("/slotcast/{cluster}/meta/table")),
            ttl: Duration::from_secs(ttl.as_secs().max(1)),
            lease: None,
            leads_since: None,
            table: (0, 0),
            seen: 0,
        }
    }

    fn post(&mut self, path: &str, body: &Value) -> Result<Value, StoreError> {
        let mut last = "no endpoint of etcd is named".to_owned();
        for _ in 0..self.endpoints.len() {
            let endpoint = &self.endpoints[self.endpoint];
            match self.ask(endpoint, path, body) {
                Ok(answer) => return Ok(answer),
                Err(reason) => last = format!("etcd at {endpoint}: {reason}"),
            }
            self.endpoint = (self.endpoint + 1) % self.endpoints.len();
        }
        Err(StoreError::Unavailable(last))
    }

    fn ask(&self, endpoint: &str, path: &str, body: &Value) -> Result<Value, String> {
        let url = format!("{}{path}", endpoint.trim_end_matches('/'));
        let mut answer = self.agent.post(&url).send_json(body).map_err(|error| error.to_string())?;
        let status = answer.status();
        let answer = answer.body_mut().read_json::<Value>();
        let answer = answer.map_err(|error| format!("{status}, and no JSON: {error}"))?;
        match answer.get("error").map(|error| error.as_str().map_or_else(|| error.to_string(), Into::into)) {
            Some(error) => Err(error),
            None if status.is_success() => Ok(answer),
            None => Err(status.to_string()),
        }
    }

    /// Renews the lease, or takes a new one.
    fn lease(&mut self) -> Result<i64, StoreError> {
        if let Some(lease) = self.lease {
            let answer = self.post("/v3/lease/keepalive", &json!({ "ID": lease.to_string() }))?;
            if number(&answer["result"]["TTL"]) > 0 {
                return Ok(lease);
            }
            (self.lease, self.leads_since) = (None, None);
        }
        let answer = self.post("/v3/lease/grant", &json!({ "TTL": self.ttl.as_secs().to_string() }))?;
        let lease = number(&answer["ID"]);
        if lease == 0 {
            return Err(StoreError::Unavailable(format!("etcd granted no lease: {answer}")));
        }
        self.lease = Some(lease);
        Ok(lease)
    }

    /// The table's revision and bytes; zero and none if there is none.
    fn read_table(&mut self) -> Result<(i64, Option<SlotTable>), StoreError> {
        let answer = self.post("/v3/kv/range", &json!({ "key": self.table_key }))?;
        let Some(kv) = answer["kvs"].get(0) else { return Ok((0, None)) };
        let damaged = |reason: String| StoreError::Damaged { place: "the table in etcd".into(), reason };
        let bytes = STANDARD.decode(kv["value"].as_str().unwrap_or_default());
        let bytes = bytes.map_err(|error| damaged(error.to_string()))?;
        Ok((number(&kv["mod_revision"]), Some(decode_table(&bytes).map_err(damaged)?)))
    }
}

impl TableStore for EtcdStore {
    fn campaign(&mut self) -> Result<Lead, StoreError> {
        let lease = self.lease()?;
        let key = &self.leader_key;
        let put = json!({ "key": key, "value": STANDARD.encode(&self.name), "lease": lease.to_string() });
        let body = json!({
            "compare": [{ "key": key, "target": "CREATE", "result": "EQUAL", "create_revision": "0" }],
            "success": [{ "request_put": put }],
            "failure": [{ "request_range": { "key": key } }],
        });
        let answer = self.post("/v3/kv/txn", &body)?;
        let found = number(&answer["header"]["revision"]);
        let seen = std::mem::replace(&mut self.seen, found);
        if found < seen {
            // Nothing that was read or written holds; the lead was given again or goes on, and is taken up at the next question.
            (self.leads_since, self.table) = (None, (0, 0));
            return Err(StoreError::SetBack { seen, found });
        }
        if answer["succeeded"] == true {
            self.leads_since = Some(number(&answer["header"]["revision"]));
            return Ok(Lead::Ours(self.ttl));
        }
        let kv = &answer["responses"][0]["response_range"]["kvs"][0];
        if number(&kv["lease"]) == lease {
            self.leads_since = Some(number(&kv["create_revision"]));
            return Ok(Lead::Ours(self.ttl));
        }
        self.leads_since = None;
        let name = kv["value"].as_str().and_then(|value| STANDARD.decode(value).ok());
        Ok(Lead::Others(name.and_then(|name| String::from_utf8(name).ok())))
    }

    fn load(&mut self) -> Result<Option<SlotTable>, StoreError> {
        let (revision, table) = self.read_table()?;
        self.table = (revision, table.as_ref().map_or(0, |table| table.epoch));
        Ok(table)
    }

    fn swap(&mut self, expected: u64, table: &SlotTable) -> Result<(), StoreError> {
        let leads_since = self.leads_since.ok_or(StoreError::NotLeading)?;
        let (revision, held) = self.table;
        check_swap(held, expected, table)?;
        let lead = json!({
            "key": self.leader_key, "target": "CREATE", "result": "EQUAL", "create_revision": leads_since.to_string(),
        });
        let same = json!({
            "key": self.table_key, "target": "MOD", "result": "EQUAL", "mod_revision": revision.to_string(),
        });
        let put = json!({ "key": self.table_key, "value": STANDARD.encode(encode_table(table)) });
        let body = json!({
            "compare": [lead, same],
            "success": [{ "request_put": put }],
            "failure": [{ "request_range": { "key": self.leader_key } }],
        });
        let answer = self.post("/v3/kv/txn", &body)?;
        if answer["succeeded"] == true {
            self.table = (number(&answer["header"]["revision"]), table.epoch);
            return Ok(());
        }
        let leader = &answer["responses"][0]["response_range"]["kvs"][0];
        if number(&leader["create_revision"]) != leads_since {
            self.leads_since = None;
            return Err(StoreError::NotLeading);
        }
        // Somebody put another table there, or etcd was restored, or an earlier put of ours did succeed.
        self.load()?;
        Err(StoreError::Conflict { expected, found: self.table.1 })
    }

    fn resign(&mut self) {
        if let Some(lease) = self.lease.take() {
            let _ = self.post("/v3/lease/revoke", &json!({ "ID": lease.to_string() }));
        }
        self.leads_since = None;
    }
}

/// A number as the gateway writes it: as text, and left out when it is 0.
fn number(value: &Value) -> i64 {
    value.as_str().and_then(|text| text.parse().ok()).or_else(|| value.as_i64()).unwrap_or(0)
}
