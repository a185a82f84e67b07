-- A library that knows version 1 may go on using the schema.
INSERT INTO {schema}.schema_info VALUES (9, 1);

-- How many instances a process takes at the most ([Config].MaxInstances), so that the others know what is left to them. 0 is no limit.
ALTER TABLE {schema}.processes ADD COLUMN max_instances bigint NOT NULL DEFAULT 0;
