-- A library that knows version 1 may go on using the schema.
INSERT INTO {schema}.schema_info VALUES (4, 1);

-- Who claims begins with what has been free for longest, and finds it without sorting what a process had that died.
CREATE INDEX instances_by_process ON {schema}.instances (process, taken_at);
DROP INDEX {schema}.instances_process;
