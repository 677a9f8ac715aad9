//! What an operator asks and changes at run time over HTTP: compaction, memory, leases of sessions, and who has or does the most of something.

use std::collections::BTreeMap;

use axum::{
    Json, Router,
    extract::{Query, State, rejection::JsonRejection, rejection::QueryRejection},
    http::StatusCode,
    routing::{get, post},
};
use serde::{Deserialize, Serialize};

use crate::{
    data::{
        compaction::{Change, Setting},
        operations::{Answer, Ask, ShardPost},
        status::{CompactionReport, LeaseReport, MemoryReport},
    },
    session::{
        operations::{Answer as SessionAnswer, Ask as SessionAsk, SessionPost},
        push_stop::{PushAsk, PushReport},
    },
    top::{TopAsk, TopReport},
};

/// Where compaction is told and asked about.
pub const COMPACTION: &str = "/admin/compaction";
/// Where memory is told.
pub const MEMORY: &str = "/admin/memory";
/// Where leases of sessions are told; `/end` below it ends those that are held back.
pub const LEASES: &str = "/admin/leases";
/// Where the largest of something is told.
pub const TOP: &str = "/admin/top";

/// Where a session's pushes are held in an emergency; `/stop` and `/resume` below it.
pub const PUSH: &str = "/admin/push";

/// What setting something answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes {
    /// Each setting with its value before and now; every shard has it.
    pub changes: Vec<Change>,
    /// How long it lasts.
    pub note: String,
}

/// Said with every change.
pub const NOT_KEPT: &str =
    "in force until the process ends; to keep it, write it into the section data of the configuration file";

/// Why a question has no answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// What was wrong and what to do.
    pub error: String,
}

type Failure = (StatusCode, Json<Problem>);

fn problem(status: StatusCode, error: impl ToString) -> Failure {
    (status, Json(Problem { error: error.to_string() }))
}

/// What a data node answers; one post per shard.
pub fn data_routes(shards: Vec<ShardPost>) -> Router {
    Router::new()
        .route(COMPACTION, get(|State(shards): Shards| compaction(shards, Ask::Compaction)))
        .route("/admin/compaction/pause", post(|State(shards): Shards| compaction(shards, Ask::Pause)))
        .route("/admin/compaction/resume", post(|State(shards): Shards| compaction(shards, Ask::Resume)))
        .route("/admin/compaction/run", post(|State(shards): Shards| compaction(shards, Ask::Run)))
        .route("/admin/compaction/set", post(set))
        .route(MEMORY, get(memory))
        .route(LEASES, get(|State(shards): Shards| leases(shards, Ask::Leases)))
        .route("/admin/leases/end", post(|State(shards): Shards| leases(shards, Ask::EndLeases)))
        .route(TOP, get(data_top))
        .route(PUSH, get(no_clients))
        .route("/admin/push/{command}", post(no_clients))
        .with_state(shards)
}

async fn no_clients() -> Failure {
    problem(StatusCode::NOT_FOUND, "a data node has no clients: ask a session at its session.http address")
}

/// What a session process answers; one post per core.
pub fn session_routes(cores: Vec<SessionPost>) -> Router {
    let elsewhere = || async {
        problem(StatusCode::NOT_FOUND, "a session holds no slots: ask a data node at its data.http address")
    };
    Router::new()
        .route(TOP, get(session_top))
        .route(PUSH, get(|State(cores): Cores| push(cores, PushAsk::Status)))
        .route("/admin/push/stop", post(|State(cores): Cores| push(cores, PushAsk::Stop)))
        .route("/admin/push/resume", post(|State(cores): Cores| push(cores, PushAsk::Resume)))
        .route(MEMORY, get(elsewhere))
        .route(LEASES, get(elsewhere))
        .route("/admin/leases/end", post(elsewhere))
        .route(COMPACTION, get(elsewhere))
        .route("/admin/compaction/{command}", post(elsewhere))
        .with_state(cores)
}

type Shards = State<Vec<ShardPost>>;
type Cores = State<Vec<SessionPost>>;

/// Asks every core of a session the same, one after the other.
async fn ask_cores(cores: &[SessionPost], ask: SessionAsk) -> Result<Vec<SessionAnswer>, Failure> {
    let mut answers = Vec::new();
    for (core, post) in cores.iter().enumerate() {
        let answer = post.ask(ask).await.map_err(|error| {
            problem(StatusCode::SERVICE_UNAVAILABLE, format!("session core {core}: {error}"))
        })?;
        answers.push(answer);
    }
    Ok(answers)
}

async fn push(cores: Vec<SessionPost>, ask: PushAsk) -> Result<Json<Vec<PushReport>>, Failure> {
    let answers = ask_cores(&cores, SessionAsk::Push(ask)).await?.into_iter().enumerate();
    let reports = answers.filter_map(|(core, answer)| match answer {
        SessionAnswer::Push(report) => Some(PushReport { core, ..report }),
        SessionAnswer::Top(_) => None,
    });
    Ok(Json(reports.collect()))
}

/// Asks every shard the same, one after the other.
async fn ask_all(shards: &[ShardPost], ask: Ask) -> Result<Vec<Answer>, Failure> {
    let mut answers = Vec::new();
    for (shard, post) in shards.iter().enumerate() {
        let answer = post
            .ask(ask.clone())
            .await
            .map_err(|error| problem(StatusCode::SERVICE_UNAVAILABLE, format!("shard {shard}: {error}")))?;
        answers.push(answer);
    }
    Ok(answers)
}

async fn compaction(shards: Vec<ShardPost>, ask: Ask) -> Result<Json<Vec<CompactionReport>>, Failure> {
    let answers = ask_all(&shards, ask).await?.into_iter();
    let reports = answers.filter_map(|answer| match answer {
        Answer::Compaction(report) => Some(*report),
        _ => None,
    });
    Ok(Json(reports.collect()))
}

/// Takes a JSON object of keys and values as texts, numbers or lists; all are checked before any is set.
async fn set(
    State(shards): Shards,
    body: Result<Json<BTreeMap<String, serde_json::Value>>, JsonRejection>,
) -> Result<Json<Changes>, Failure> {
    let bad = |error: String| problem(StatusCode::BAD_REQUEST, error);
    let Json(wanted) = body.map_err(|error| bad(format!("a JSON object of settings is needed: {error}")))?;
    if wanted.is_empty() {
        return Err(bad("no setting is given, such as {\"compaction_interval\": \"10s\"}".into()));
    }
    let settings: Result<Vec<Setting>, String> = wanted
        .iter()
        .map(|(key, value)| match value {
            serde_json::Value::String(text) => Setting::parse(key, text),
            other => Setting::parse(key, &other.to_string()),
        })
        .collect();
    let settings = settings.map_err(bad)?;
    let mut answers = ask_all(&shards, Ask::Set(settings)).await?;
    match answers.pop() {
        Some(Answer::Changes(changes)) => Ok(Json(Changes { changes, note: NOT_KEPT.into() })),
        _ => Err(problem(StatusCode::SERVICE_UNAVAILABLE, "no shard has answered")),
    }
}

async fn memory(State(shards): Shards) -> Result<Json<Vec<MemoryReport>>, Failure> {
    let answers = ask_all(&shards, Ask::Memory).await?.into_iter();
    let reports = answers.filter_map(|answer| match answer {
        Answer::Memory(report) => Some(report),
        _ => None,
    });
    Ok(Json(reports.collect()))
}

async fn leases(shards: Vec<ShardPost>, ask: Ask) -> Result<Json<Vec<LeaseReport>>, Failure> {
    let answers = ask_all(&shards, ask).await?.into_iter();
    let reports = answers.filter_map(|answer| match answer {
        Answer::Leases(report) => Some(report),
        _ => None,
    });
    Ok(Json(reports.collect()))
}

fn question(query: Result<Query<TopAsk>, QueryRejection>) -> Result<TopAsk, Failure> {
    let bad = |error: String| problem(StatusCode::BAD_REQUEST, error);
    let Query(ask) = query.map_err(|error| bad(error.body_text()))?;
    let most = slotcast_engine::top::LIMIT_MAX;
    if (1..=most).contains(&ask.limit) {
        Ok(ask)
    } else {
        Err(bad(format!("limit = {} has to be from 1 to {most}", ask.limit)))
    }
}

async fn data_top(
    State(shards): Shards,
    query: Result<Query<TopAsk>, QueryRejection>,
) -> Result<Json<TopReport>, Failure> {
    let ask = question(query)?;
    let answers = ask_all(&shards, Ask::Top(ask)).await?.into_iter();
    let reports = answers.filter_map(|answer| match answer {
        Answer::Top(report) => Some(report),
        _ => None,
    });
    merged(reports.collect(), ask.limit)
}

async fn session_top(
    State(cores): Cores,
    query: Result<Query<TopAsk>, QueryRejection>,
) -> Result<Json<TopReport>, Failure> {
    let ask = question(query)?;
    let mut reports = Vec::new();
    for answer in ask_cores(&cores, SessionAsk::Top(ask)).await? {
        if let SessionAnswer::Top(answer) = answer {
            reports.push(answer.map_err(|error| problem(StatusCode::NOT_FOUND, error))?);
        }
    }
    merged(reports, ask.limit)
}

fn merged(reports: Vec<TopReport>, limit: usize) -> Result<Json<TopReport>, Failure> {
    let report = TopReport::merged(reports, limit);
    report.map(Json).ok_or_else(|| problem(StatusCode::SERVICE_UNAVAILABLE, "nobody has answered"))
}
