//! Every bound that Hydra puts on what it is handed or keeps, with the reason for its value.

use std::time::Duration;

use super::Ppm;

/// Rounds in a run: one every half hour for sixty years. The secrets of its audits are computed from the last one back,
/// in a fifth of a second for so many.
pub const ROUNDS_MAX: u32 = 1 << 20;

/// Tasks in a round. Aggregation reads one payload a task, and a round's tasks are all in the coordinator's memory
/// (a few hundred bytes each).
pub const TASKS_PER_ROUND_MAX: u32 = 4096;

/// Inner steps in a task: ten times what low-communication training has been shown to stand (`DiLoCo`: 500), and
/// it bounds the loss trace in a submission to 20 KB.
pub const INNER_STEPS_MAX: u32 = 5000;

/// Pieces of a task after which the state of training is committed to. A digest of the weights takes a seventieth of a step
/// (0.6 ms for the preset nano), and sixteen of them are half a kilobyte in a submission; five comparisons find the first
/// of sixteen that differs, if any does.
pub const SEGMENTS_MAX: u32 = 16;

/// Sequences in a step.
pub const BATCH_MAX: u32 = 4096;

/// Tokens in a step: activations are some kilobytes a token even for small models, so a million tokens is more than
/// any home machine holds.
pub const STEP_TOKENS_MAX: u64 = 1 << 20;

/// Windows of the validation split in one measurement: 65 536 × 64 tokens is minutes of work already.
pub const VALIDATION_WINDOWS_MAX: u32 = 1 << 16;

/// Transformer blocks.
pub const LAYERS_MAX: u32 = 256;

/// Width of the residual stream.
pub const WIDTH_MAX: u32 = 1 << 14;

/// Inner width of a feed-forward network.
pub const HIDDEN_MAX: u32 = 1 << 16;

/// Tokens in a sequence.
pub const CONTEXT_MAX: u32 = 1 << 14;

/// Parameters of a model: 8 GB of f32, which a blob, a payload and a worker's memory must each hold.
pub const PARAMETERS_MAX: u64 = 2_000_000_000;

/// Numbers that share a scale in the integer codecs: small enough that one large weight spoils few others, large
/// enough that the scales cost half a bit a number (measured in the log: ternary in blocks of 64 costs nothing in
/// loss).
pub const CODEC_BLOCK: usize = 64;

/// Where the ternary codec clips, in root mean squares of a block. Measured at the recipe of the learning bench, one
/// worker: 1.7 gives a validation loss of 1.641, 1.25 gives 1.631, 0.9 gives 1.624; no clipping gives 1.671.
pub const TERNARY_CLIP: f64 = 0.9;

/// Centred clipping bounds updates from this many median distances on. Distances of honest updates lie within a few per
/// cent of each other, so they are never bounded.
pub const CLIP_RADIUS: f64 = 1.2;

/// What ternary codes of an honest update may differ from its replay's by on average, in levels. `benches/replay.rs`: engines
/// that sum in another order differ by up to 1.1e-5, the smallest cheat, one step of 30 left out at the end, by 2.5e-2 or
/// more. Of finer codes as many times more as they have levels (int4: 6.2e-5 and 0.10, int8: 1.1e-3 and 1.9).
pub const REPLAY_CODES_MAX: f64 = 1e-3;

/// The same where nobody has measured the two kinds of devices: less than half of what the smallest cheat differs by.
pub const REPLAY_CODES_UNMEASURED: f64 = 1e-2;

/// The relative L2 distance, of scales and of numbers that travel as such, at which a replay differs. The same bench:
/// up to 1.6e-4 between engines, 1.9e-2 or more for the smallest cheat.
pub const REPLAY_DISTANCE_MAX: f64 = 4e-3;

/// The same where nobody has measured the two kinds of devices: less than half of what the smallest cheat differs in.
pub const REPLAY_DISTANCE_UNMEASURED: f64 = 1e-2;

/// The median cosine with the other updates of its round below which an update is said to point against them. Updates
/// that are honest agree to some degree, always; the cosine of a sketch of two that have nothing to do with each other
/// strays by 0.016.
pub const DIRECTION_COSINE_MIN: f64 = -0.08;

/// An update that agrees with the others less than this times as much as is usual in its round is looked at more closely.
/// Honest ones differ by some tenths.
pub const SUSPECT_AGREEMENT: f64 = 0.5;

/// Batches of its own on which a suspect update must help: a few, because the look must cost little beside doing the task
/// again.
pub const HELD_OUT_BATCHES: u32 = 4;

/// How much higher, as a share, a suspect update may leave the loss there. Near the end of what a model can learn, a few
/// noisy steps of honest work have raised it by 0.03; what was not trained on the task's data raises it by 0.05 to 0.9.
pub const HELD_OUT_RISE_MAX: f64 = 0.05;

/// The same for an update that comes late, which nothing speaks against yet: rounding to ternary codes alone has raised the
/// loss of small models by 0.05. The opposite of an honest update doubles it.
pub const HELD_OUT_RISE_LATE_MAX: f64 = 0.25;

/// Other updates that it takes to tell.
pub const DIRECTION_OTHERS_MIN: usize = 3;

/// Other workers who each have one voice, however many updates are theirs: of two, both must be against one to turn it away.
pub const DIRECTION_WORKERS_MIN: usize = 2;

/// Established workers in a round from which on only these are what the others are compared with: of three, one that has
/// turned is outvoted.
pub const ESTABLISHED_MIN: usize = 3;

/// How long an audit may take before it ends in the worker's favour: a verifier that is away over night is no worker's
/// fault.
pub const AUDIT_WITHIN: Duration = Duration::from_hours(24);

/// Audits that a worker's results may wait for before it is lent no more work: half of the rewards that are not its own
/// yet, so that whoever is found out still has something to lose.
pub const AUDITS_OWED_MAX: u32 = 16;

/// How long a worker may have a task without handing anything in, in lengths of a lease, however often it says that it is at
/// it: an honest one renews its lease twenty times, after a third of it each, and leaves the task to others then.
pub const LEASES_HELD_MAX: u32 = 8;

/// The share of audits that are tests of the verifiers: one that never looks is found out after sixteen on average.
pub const PLANTED: Ppm = Ppm(62_500);

/// Times that a verifier may be outvoted: a machine may fail, but not that often.
pub const VERIFIER_FAULTS_MAX: u32 = 3;

/// Other workers who must have got the same, and something else than an established worker, before that one is
/// convicted. Two that hand in the same false results may by chance be those who are asked; that three are is rarer by
/// their share of the swarm, and the third must have a name to lose as well.
pub const PEERS_AGAINST: usize = 3;

/// Rounds whose audits can be checked by anybody: some hundred bytes a task each.
pub const DRAWS_KEPT: usize = 32;

/// Warm-up of a run that has no planned end, in inner steps: some tasks' worth.
pub const WARMUP_STEPS_OPEN_END: u64 = 100;

/// A signed message: the largest is a submission with [`INNER_STEPS_MAX`] losses of 4 bytes, and some room.
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024;

/// A dataset manifest: 64 bytes a shard, so a terabyte of text fits.
pub const MANIFEST_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Text in one shard: small enough to fetch over a home line in seconds, large enough that a manifest stays small.
pub const SHARD_BYTES: usize = 1 << 20;

/// What describes an imported model: a configuration is some hundred bytes, a tokenizer of bytes some thousand, one that
/// merges them a few megabytes (and is refused with what is wrong).
pub const MODEL_WORDS_BYTES_MAX: u64 = 32 << 20;

/// Text that a run is trained on. A worker holds the whole of it in memory.
pub const CORPUS_BYTES_MAX: u64 = 4 << 30;

/// Any blob: the largest is a model of [`PARAMETERS_MAX`] f32 parameters, and its header.
pub const BLOB_BYTES_MAX: u64 = PARAMETERS_MAX * 4 + (1 << 20);

/// Workers that a coordinator remembers: a few hundred bytes each.
pub const WORKERS_MAX: usize = 1_000_000;

/// Workers in one process: each holds a model, its gradients and its optimiser's state.
pub const LOCAL_WORKERS_MAX: u32 = 256;

/// Messages that wait in an actor's mailbox before senders are told to come back later.
pub const MAILBOX: usize = 1024;

/// The longest lease, round and time to appeal that a run may have, seconds: thirty days.
pub const TIMING_SECONDS_MAX: u64 = 30 * 24 * 60 * 60;

/// A submission's update may be this many times smaller or larger than the median. Honest updates of one round lie
/// within 10 % of each other; scaling an update by two does little harm under averaging.
pub const NORM_RATIO_MAX: f32 = 2.0;

/// Updates whose cosine is above this are alike: honest updates of different data stay below 0.8 even in the first
/// round, when all point the same way.
pub const COPY_COSINE: f32 = 0.98;

/// Norms of earlier rounds, one a worker and round, that the statistics layer compares with besides the round's own, so that
/// a round of one or two tasks has something to be compared with.
pub const NORM_HISTORY: usize = 16;

/// Fewest norms from which a median says anything.
pub const NORM_REFERENCE_MIN: usize = 3;

/// How many rounds late a result may come: its base model must still be there for whoever checks it, and of
/// [`MODELS_KEPT`] one is the open round's.
pub const LATE_ROUNDS_MAX: u32 = MODELS_KEPT - 1;

/// Base models whose weights are kept: the newest, and two to go back to. The lineage (digests, losses) is kept of
/// all.
pub const MODELS_KEPT: u32 = 3;

/// Results that count in one round: its own, and those that come late. Of each earlier round less than half of the tasks
/// can still come, since it closed with more than half done.
pub const RESULTS_PER_ROUND_MAX: usize =
    TASKS_PER_ROUND_MAX as usize + LATE_ROUNDS_MAX as usize * (TASKS_PER_ROUND_MAX as usize / 2);

/// Replays that are paid with one round: as many as may have results, so that a swarm of new keys, whose every result is
/// computed again, leaves none behind. What is more is paid with the rounds after it.
pub const REPLAYS_PAID_MAX: usize = RESULTS_PER_ROUND_MAX;

/// Pays of one round.
pub const PAYS_PER_ROUND_MAX: usize = RESULTS_PER_ROUND_MAX + REPLAYS_PAID_MAX;

/// Transfers in one linked chain: a round's pay is one chain, and as many older pays may vest with it. Should more be old
/// enough, they vest with a later one.
pub const CHAIN_TRANSFERS_MAX: usize = 2 * PAYS_PER_ROUND_MAX + 16;

/// Pending transfers that are unresolved: thirty-two unvested rewards for each of [`WORKERS_MAX`] workers, and a million
/// queries, offers and stakes under way. A hundred bytes each: a ledger that comes near it has outgrown one machine.
pub const HOLDS_MAX: usize = 33 * WORKERS_MAX;

/// How far ahead a signed order may be valid. A refusal is remembered for as long, so this bounds the memory; a day
/// leaves room for clocks that are wrong and networks that are down.
pub const ORDER_LIFETIME_MAX: Duration = Duration::from_hours(24);

/// How far ahead an offer may expire.
pub const OFFER_LIFETIME_MAX: Duration = Duration::from_hours(90 * 24);

/// How long a query's hold may last: no completion takes longer.
pub const QUERY_LIFETIME_MAX: Duration = Duration::from_hours(1);

/// Refusals that are remembered of one wallet. A client that has more than a few requests refused at a time is broken.
pub const REFUSALS_PER_WALLET: usize = 64;

/// Amounts that one wallet takes out of its stake at the same time: a finding ends them all in one chain.
pub const UNSTAKING_MAX: usize = 16;

/// Wallets that share in one query: each is a transfer.
pub const CONTRIBUTORS_MAX: usize = 1024;

/// Pending transfers that are ended by the clock at a time, so that a mailbox is never blocked for long.
pub const DUE_AT_A_TIME: usize = 1024;

/// Requests that wait to be written in one transaction. Ten thousand take a tenth of a second.
pub const GROUP_COMMIT_MAX: usize = 10_000;

/// Answers of the ledger that wait until they are durable: some hundred bytes each.
pub const LEDGER_WAITING_MAX: usize = 1 << 17;

/// Entries, accounts, offers or heads on a page of the ledger: some hundred kilobytes.
pub const LEDGER_PAGE_MAX: usize = 1000;

/// The same where nobody says how many.
pub const LEDGER_PAGE: usize = 100;

/// Rounds or workers in one page of an answer: some hundred kilobytes of JSON.
pub const WATCH_PAGE_MAX: usize = 1000;

/// The same where nobody says how many.
pub const WATCH_PAGE: usize = 100;

/// Texts of earlier models that are kept to be shown, newest last: some kilobytes.
pub const SAMPLES_KEPT: usize = 64;

/// Tokens of such a text at most: enough to see how well a model writes, a few hundredths of a second of work.
pub const SAMPLE_TOKENS: u32 = 160;

/// Reports of simulations that are listed, and bytes of a file of one: what `cargo sim --out` writes has some kilobytes.
pub const REPORTS_MAX: usize = 500;
/// Requests that read reports at the same time: a list reads two files of each.
pub const REPORTS_READ_AT_A_TIME: usize = 4;
/// See [`REPORTS_MAX`].
pub const REPORT_BYTES_MAX: u64 = 4 << 20;

/// Orders in one batch: checking their signatures takes a tenth of a second.
pub const ORDERS_MAX: usize = 1000;

/// A signed order as JSON: some 400 bytes.
pub const ORDER_JSON_BYTES_MAX: usize = 1024;

/// A signed verdict as JSON: a few hundred bytes.
pub const VERDICT_JSON_BYTES_MAX: usize = 1024;

/// Requests that wait for the ledger's archive, which answers one after the other in milliseconds.
pub const ARCHIVE_WAITING_MAX: usize = 64;

/// Records of a run that are read at a time for those who look on: a few megabytes.
pub const HISTORY_READ: i64 = 10_000;

/// Entries that the archive reads at a time while it catches up with the ledger: some megabytes.
pub const ARCHIVE_READ: usize = 10_000;

/// How long a ledger that could not write waits before it lets its clock try again.
pub const LEDGER_RETRY: Duration = Duration::from_secs(1);

/// The canonical encoding of a transfer: the largest kind has two keys and four digests (192 bytes) and some numbers;
/// twice that leaves room for kinds to come.
pub const TRANSFER_BYTES_MAX: usize = 512;

/// The write-ahead log is written back to the database file from this length on: a second of a busy ledger, and little
/// beside the file itself.
pub const WRITE_AHEAD_LOG_BYTES: u64 = 64 << 20;

/// How long one connection to the database waits for another's transaction: a batch is written in milliseconds, so
/// after five seconds something is stuck.
pub const DATABASE_WAIT: Duration = Duration::from_secs(5);

/// Tokens that one `generate` call produces.
pub const GENERATE_TOKENS_MAX: u32 = 65_536;

/// Queries that are answered at the same time: from here on more in a step bring hardly more tokens a second, and each
/// has a cache of its own (8 MB at the preset small).
pub const QUERIES_RUNNING_MAX: usize = 64;

/// Queries that wait for a place; more are told to come back later.
pub const QUERIES_WAITING_MAX: usize = 256;

/// Tokens of a prompt that are read in one step, so that those under way do not wait long: a few milliseconds' work.
pub const PROMPT_PIECE: usize = 128;

/// Prompts that are read at the same time, for the same reason.
pub const PROMPTS_READ_AT_A_TIME: usize = 4;

/// Memory for what was computed for texts, for others that begin like them: hundreds of contexts of the preset nano, some
/// thirty of small.
pub const PREFIX_BYTES: usize = 256 << 20;

/// Shorter texts are not kept: reading them takes no longer than copying.
pub const PREFIX_TOKENS_MIN: usize = 16;

/// Texts that one query may ask for: each takes a place.
pub const CHOICES_MAX: usize = 16;

/// Stop texts of a query (`OpenAI`'s bound), and bytes of each.
pub const STOPS_MAX: usize = 4;

/// See [`STOPS_MAX`].
pub const STOP_BYTES_MAX: usize = 256;

/// Likeliest tokens that are told at each place (`OpenAI`'s bound).
pub const TOP_LOGPROBS_MAX: usize = 20;

/// A query's body: the longest context as escaped JSON, with room for what is around it.
pub const QUERY_BYTES_MAX: usize = 1 << 20;

/// How long a query's hold lasts: longer than any answer takes, and short enough that what a crash leaves held is soon
/// back where nobody gives it back before.
pub const QUERY_HOLD: Duration = Duration::from_mins(15);

/// A settlement as JSON: a key and a number for each of [`CONTRIBUTORS_MAX`], 120 bytes at most, and some words.
pub const SETTLEMENT_JSON_BYTES_MAX: usize = CONTRIBUTORS_MAX * 128 + 1024;

/// API keys of one wallet, revoked ones included.
pub const API_KEYS_PER_WALLET: usize = 64;

/// API keys that a server knows: some 200 bytes each.
pub const API_KEYS_MAX: usize = 1 << 20;

/// The name of an API key, in bytes.
pub const API_KEY_NAME_BYTES_MAX: usize = 64;

/// Addresses whose free allowance is remembered: 50 bytes each.
pub const FREE_ADDRESSES_MAX: usize = 1 << 17;

/// A record of a coordinator's run: the largest is [`PAYS_PER_ROUND_MAX`] pays, 45 bytes each.
pub const RECORD_BYTES_MAX: usize = 1 << 20;

/// A request's body where nothing larger is said: a signed message as JSON is a third longer than its bytes, and has
/// some words around it.
pub const HTTP_BODY_BYTES_MAX: usize = MESSAGE_BYTES_MAX * 3 / 2;

/// One piece of an upload. It is held in memory until its digest is checked, on both sides: at 4 MiB, a thousand
/// uploads at a time take 4 GiB, and a home line (10 Mbit/s) needs four seconds a piece.
pub const HTTP_CHUNK_BYTES_MAX: usize = 4 << 20;

/// A signed call in a header: two keys' worth of signature, a path, two digests and a nonce, in base64. A path is
/// bounded by the 8 KiB that hyper gives the whole head.
pub const HTTP_CALL_BYTES_MAX: usize = 4096;

/// How far a caller's clock may be from the server's. Home computers without a time service are off by seconds; five
/// minutes is what Kerberos settled on, but a nonce must be remembered for twice this long.
pub const HTTP_CLOCK_SKEW: Duration = Duration::from_mins(2);

/// Nonces that a server remembers: 40 bytes each. At the limit, calls are refused until old ones are forgotten; the
/// rate limits keep honest use well below.
pub const HTTP_NONCES_MAX: usize = 1 << 21;

/// How long a pass holds: the two signatures and the exchange of keys that it costs are then one part in thousands of what
/// it saves, and a key that somebody gets hold of is soon worth nothing.
pub const HTTP_PASS_LASTS: Duration = Duration::from_hours(1);

/// Passes that a server keeps: 200 bytes each. Beyond, those that were made first are forgotten, and their owners get
/// others.
pub const HTTP_PASSES_MAX: usize = 1 << 17;

/// Passes of one key: a worker, a verifier and some commands of one owner at the same time.
pub const HTTP_PASSES_PER_KEY: usize = 4;

/// Connections that a server keeps open: two for each of several thousand workers, at some tens of KiB each.
pub const HTTP_CONNECTIONS_MAX: usize = 16_384;

/// Connections from one address: a household, or a university behind one router.
pub const HTTP_CONNECTIONS_PER_ADDRESS: usize = 256;

/// How long a client may take for a request's head, and for TLS before it; an idle connection is closed after it too.
pub const HTTP_HEAD_WITHIN: Duration = Duration::from_secs(30);

/// Buffer of a connection, which a request's head must fit into: hyper's least, so that idle connections cost little.
pub const HTTP_BUFFER_BYTES: usize = 8 * 1024;

/// How long a client may take for a request's body: the largest piece of an upload at 0.3 Mbit/s.
pub const HTTP_BODY_WITHIN: Duration = Duration::from_mins(2);

/// How long a request may wait for its answer: longer than any request is held open on purpose.
pub const HTTP_ANSWER_WITHIN: Duration = Duration::from_secs(45);

/// An answer that is read into memory: the largest is the comparison of [`TASKS_PER_ROUND_MAX`] submissions.
pub const HTTP_ANSWER_BYTES_MAX: usize = 16 << 20;

/// How long a server that was told to stop waits for requests under way.
pub const HTTP_DRAIN: Duration = Duration::from_secs(5);

/// Signed calls of one key: a worker makes a handful a task and one for each piece of an upload. Bursts of so many
/// calls are allowed.
pub const HTTP_CALLS_PER_KEY: Rate = Rate { per_second: 50, burst: 200 };

/// Requests from one address, before anything is checked: a checked signature costs 50 µs.
pub const HTTP_CALLS_PER_ADDRESS: Rate = Rate { per_second: 500, burst: 2000 };

/// Keys and addresses whose rates are remembered: 100 bytes each. Beyond, those that were quiet longest are forgotten.
pub const HTTP_RATES_MAX: usize = 1 << 17;

/// Keys that may be on an allow list.
pub const ADMITTED_MAX: usize = WORKERS_MAX;

/// People who watch live events at a time: each has a buffer of [`HTTP_EVENTS_KEPT`] events.
pub const HTTP_WATCHERS_MAX: usize = 256;

/// Events that a slow watcher may be behind before it misses some.
pub const HTTP_EVENTS_KEPT: usize = 256;

/// How long a lent verification job is left to one verifier before another may have it.
pub const JOB_LENT: Duration = Duration::from_secs(30);

/// The same of a task that is to be computed again: longer than a task is meant to take, several times.
pub const REPLAY_LENT: Duration = Duration::from_mins(30);

/// Verification jobs that wait for a verifier: as many as a round has tasks, the comparison of all, and twice as many
/// audits; about a kilobyte each.
pub const JOBS_MAX: usize = 3 * TASKS_PER_ROUND_MAX as usize + 1;

/// How often something may be done: so often a second on average, and `burst` times at once after a pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// On average.
    pub per_second: u32,
    /// At once.
    pub burst: u32,
}

/// How often a worker that has never reached its coordinator tries to.
pub const REGISTER_AGAIN: Duration = Duration::from_secs(1);

/// A command to a worker on its local socket: a word.
pub const CONTROL_BYTES_MAX: u64 = 64;

/// What a worker answers its owner: its status, with errors of some lines in it.
pub const CONTROL_ANSWER_BYTES_MAX: u64 = 64 << 10;

/// A configuration file: every option there is, some keys and comments fit into a few kilobytes.
pub const CONFIG_BYTES_MAX: u64 = 1 << 20;

/// Free space below which a state directory is as good as full: a small model, its payloads and the ledger's log.
pub const DISK_FREE_MIN: u64 = 256 << 20;

/// Free space below which it may soon be: some rounds of a model of a hundred million parameters.
pub const DISK_FREE_GOOD: u64 = 4 << 30;
