-- A library that knows version 1 may go on using the schema.
INSERT INTO {schema}.schema_info VALUES (3, 1);

-- The name of the installation, which a copy of its database carries along.
ALTER TABLE {schema}.settings ADD COLUMN realm text NOT NULL DEFAULT '';

-- What a process tells of itself with every sign of life: where it is reached, whether it takes its share of instances, and what it has not saved.
ALTER TABLE {schema}.processes
    ADD COLUMN address      text NOT NULL DEFAULT '',
    ADD COLUMN claims       bool NOT NULL DEFAULT false,
    ADD COLUMN pending      bigint NOT NULL DEFAULT 0,
    ADD COLUMN pending_for  interval NOT NULL DEFAULT '0';

CREATE INDEX instances_process ON {schema}.instances (process);

-- Who has which instance since when, and whether he lives.
CREATE VIEW {schema}.owners AS
SELECT i.id, i.jid, i.owner, i.process, p.address, i.epoch, i.taken_at, clock_timestamp() - p.heartbeat AS heartbeat_age,
       coalesce(p.expires > clock_timestamp(), false) AS alive, i.process IS NULL AS released
FROM {schema}.instances i LEFT JOIN {schema}.processes p ON p.id = i.process;

-- What each process has, and how much of it is not saved and since when.
CREATE VIEW {schema}.process_load AS
SELECT p.id, p.owner, p.address, p.started_at, clock_timestamp() - p.heartbeat AS heartbeat_age, p.expires > clock_timestamp() AS alive,
       p.claims, (SELECT count(*) FROM {schema}.instances i WHERE i.process = p.id) AS instances, p.pending, p.pending_for
FROM {schema}.processes p;

-- Sizes by instance and key type.
CREATE VIEW {schema}.instance_sizes AS
SELECT instance_id, key_type, count(*) AS keys, sum(pg_column_size(data))::bigint AS bytes, max(updated_at) AS last_write
FROM {schema}.auth_keys GROUP BY instance_id, key_type;

-- So that every process finds out what the others have learnt. The first default is the same for all rows and needs no rewriting.
ALTER TABLE {schema}.lid_map ADD COLUMN changed_at timestamptz NOT NULL DEFAULT now();
ALTER TABLE {schema}.lid_map ALTER COLUMN changed_at SET DEFAULT clock_timestamp();
CREATE INDEX lid_map_changed_at ON {schema}.lid_map (changed_at);
