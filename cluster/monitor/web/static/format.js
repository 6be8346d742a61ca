// Numbers and times for people.

/** Four significant digits; thousands apart; a dash for none. */
export function number(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (value !== 0 && (size < 1e-3 || size >= 1e7)) return Number(value.toPrecision(3)).toExponential().replace("e+", "e");
  if (Number.isInteger(value) || size >= 1000) return Math.round(value).toLocaleString("en-GB");
  return String(Number(value.toPrecision(4)));
}

/** Seconds as 12 s, 13 min 42 s, 2 h 05 min, 3 d 4 h. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "–";
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${String(whole % 60).padStart(2, "0")} s`;
  if (whole < 86400) return `${Math.floor(whole / 3600)} h ${String(Math.floor((whole % 3600) / 60)).padStart(2, "0")} min`;
  return `${Math.floor(whole / 86400)} d ${Math.floor((whole % 86400) / 3600)} h`;
}

/** Unix seconds as a clock time, with the day if it is not today. */
export function clock(seconds) {
  const date = new Date(seconds * 1000);
  if (Number.isNaN(date.getTime())) return "–";
  const time = date.toLocaleTimeString("en-GB");
  const today = new Date().toDateString() === date.toDateString();
  return today ? time : `${date.toLocaleDateString("en-GB", { day: "numeric", month: "short", year: "numeric" })}, ${time}`;
}

export function hours(seconds) {
  const value = seconds / 3600;
  if (value > 0 && value < 0.001) return "< 0.001";
  return value >= 100 ? Math.round(value).toLocaleString("en-GB") : value.toFixed(value >= 1 ? 2 : 3);
}

export function percent(share) {
  return share === null || !Number.isFinite(share) ? "–" : `${(100 * share).toFixed(share >= 0.0995 || share === 0 ? 0 : 1)} %`;
}

export const words = (name) => name.replaceAll("_", " ");
