-- A library that knows version 1 may go on using the schema: it leaves the new columns as they are.
INSERT INTO {schema}.schema_info VALUES (2, 1);

-- What all processes have to agree on: one row, written by the first of them.
CREATE TABLE {schema}.settings (
    one   bool PRIMARY KEY DEFAULT true CHECK (one),
    takes text NOT NULL CHECK (takes IN ('forced', 'respect_lease'))
);

-- One row for each process that respects leases. Its instances are its own until expires.
CREATE TABLE {schema}.processes (
    id         uuid PRIMARY KEY,
    owner      text NOT NULL,
    started_at timestamptz NOT NULL DEFAULT now(),
    heartbeat  timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires    timestamptz NOT NULL
) WITH (fillfactor = 50);

-- The process that has taken the instance, until it lets go of it, and the database on which that was: another one
-- has other rows, whatever their timeline.
ALTER TABLE {schema}.instances ADD COLUMN process uuid, ADD COLUMN system text COLLATE "C" NOT NULL DEFAULT '';
