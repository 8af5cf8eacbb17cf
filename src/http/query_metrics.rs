use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// Numbers on queries, named as `vLLM` names them.
#[derive(Debug)]
pub struct QueryMetrics {
    pub running: Gauge,
    pub waiting: Gauge,
    pub prompt_tokens: Counter,
    pub generation_tokens: Counter,
    pub paid_micro: Counter,
    pub prefix_asked: Counter,
    pub prefix_found: Counter,
    pub prefix_bytes: Gauge,
    pub first_token: Histogram,
    pub latency: Histogram,
    ended: Family<Ending, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ending {
    finished_reason: &'static str,
}

impl Default for QueryMetrics {
    fn default() -> Self {
        // From a millisecond to half a minute, and to five.
        let histogram = |most| Histogram::new(exponential_buckets(1e-3, 2.0, most));
        Self {
            running: Gauge::default(),
            waiting: Gauge::default(),
            prompt_tokens: Counter::default(),
            generation_tokens: Counter::default(),
            paid_micro: Counter::default(),
            prefix_asked: Counter::default(),
            prefix_found: Counter::default(),
            prefix_bytes: Gauge::default(),
            first_token: histogram(16),
            latency: histogram(19),
            ended: Family::default(),
        }
    }
}

impl QueryMetrics {
    pub fn register(&self, registry: &mut Registry) {
        registry.register("num_requests_running", "Texts that are being written", self.running.clone());
        registry.register("num_requests_waiting", "Texts that wait for a place", self.waiting.clone());
        registry.register("prompt_tokens", "Tokens of prompts", self.prompt_tokens.clone());
        registry.register("generation_tokens", "Tokens written", self.generation_tokens.clone());
        registry.register("queries_paid_micro", "µHYD that queries have paid", self.paid_micro.clone());
        registry.register("prefix_cache_queries", "Tokens of prompts that were looked for", self.prefix_asked.clone());
        registry.register("prefix_cache_hits", "Tokens of prompts that were known", self.prefix_found.clone());
        registry.register("prefix_cache_bytes", "Memory of what is known", self.prefix_bytes.clone());
        registry.register("time_to_first_token_seconds", "Until a query's first token", self.first_token.clone());
        registry.register("e2e_request_latency_seconds", "Until a query's last token", self.latency.clone());
        registry.register("request_success", "Queries that ended, by how", self.ended.clone());
    }

    /// A query has ended: `stop` (all its texts were written), `abort` (its client went away) or `error`.
    pub fn ended(&self, how: &'static str) {
        self.ended.get_or_create(&Ending { finished_reason: how }).inc();
    }
}
