"""Commands around training: sweeps, label audits, the doctor."""
