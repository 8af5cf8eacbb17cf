// How numbers, amounts, times and names are written.

const MISSING = "–";
const NARROW = "\u202f";

/** Thousands apart, so many places behind the point. */
export function number(value, places = 0) {
  if (value === null || value === undefined || !Number.isFinite(Number(value))) return MISSING;
  const [whole, part] = Math.abs(Number(value)).toFixed(places).split(".");
  const spaced = whole.replace(/\B(?=(\d{3})+$)/g, NARROW);
  return (Number(value) < 0 ? "−" : "") + spaced + (part ? `.${part}` : "");
}

/** µHYD, a decimal text of any length, as HYD to the last digit; `padded` so that points stand under each other. */
export function hyd(micro, padded = false) {
  if (micro === null || micro === undefined) return MISSING;
  const value = BigInt(micro);
  const all = value < 0n ? -value : value;
  const digits = (all % 1000000n).toString().padStart(6, "0");
  const part = digits.replace(/0{1,4}$/, (zeros) => (padded ? "\u2007".repeat(zeros.length) : ""));
  const whole = (all / 1000000n).toString().replace(/\B(?=(\d{3})+$)/g, NARROW);
  return `${value < 0n ? "−" : ""}${whole}.${part}`;
}

/** The same with two places, rounded down: where there is little room. */
export const about = (micro) => (micro === null || micro === undefined ? MISSING : hyd(micro).replace(/(\.\d\d)\d+$/, "$1"));

export const loss = (value) => number(value, 4);

/** Nats a token as bits a byte: a token is a byte. */
export const bits = (nats) => (nats === null || nats === undefined ? null : nats / Math.LN2);

/** Enough of a digest or key for people to tell two apart. */
export const short = (digest) => (digest ? digest.slice(0, 8) : MISSING);

/** Milliseconds as a length of time. */
export function duration(ms) {
  if (ms === null || ms === undefined || !Number.isFinite(ms)) return MISSING;
  const seconds = Math.max(0, ms) / 1000;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  const all = Math.round(seconds);
  if (all < 60) return `${all} s`;
  if (all < 3600) return `${Math.floor(all / 60)} min ${two(all % 60)} s`;
  return `${Math.floor(all / 3600)} h ${two(Math.floor((all % 3600) / 60))} min`;
}

const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const two = (n) => String(n).padStart(2, "0");
const day = (at) => `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())}`;

/** A time of a server: milliseconds since 1970. */
export const time = (ms) => clock.format(new Date(ms));
export const date = (ms) => (ms === null || ms === undefined ? MISSING : `${day(new Date(ms))} ${time(ms)}`);

/** An account as people read it. */
export function account(name) {
  const [kind, key] = name.split(":");
  return key ? `${kind} ${short(key)}` : kind;
}

/** A word of the wire for people. */
export const words = (name) => String(name).replaceAll("_", " ").replaceAll("-", " ");
