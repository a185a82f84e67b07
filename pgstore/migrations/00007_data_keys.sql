-- A library that knows version 1 may go on using the schema, until the first data key is there: it would take encrypted rows for spoilt ones.
INSERT INTO {schema}.schema_info VALUES (7, 1);

-- The data keys of instances whose values are encrypted (encryption.go), each wrapped by a key that is elsewhere. An encrypted row is {"enc": text}, and the text
-- begins with the id of its data key. The newest one of an instance encrypts.
CREATE TABLE {schema}.data_keys (
    instance_id  text COLLATE "C" NOT NULL REFERENCES {schema}.instances (id) ON DELETE CASCADE,
    id           text COLLATE "C" NOT NULL CHECK (id <> ''),
    wrapping_key text COLLATE "C" NOT NULL, -- the id of the key that wraps it
    wrapped      bytea NOT NULL,
    wrapped_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    created_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    complete     bool NOT NULL DEFAULT false, -- whether all rows of the instance are under this key
    PRIMARY KEY (instance_id, id)
);
CREATE INDEX data_keys_wrapping_key ON {schema}.data_keys (wrapping_key);

CREATE FUNCTION {schema}.data_keys_begun() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF EXISTS (SELECT FROM {schema}.schema_info WHERE version >= 7 AND usable_from < 7) THEN
        UPDATE {schema}.schema_info SET usable_from = 7 WHERE version >= 7 AND usable_from < 7;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER data_keys_begun AFTER INSERT ON {schema}.data_keys FOR EACH ROW EXECUTE FUNCTION {schema}.data_keys_begun();

-- For who has no key, and need have no right on the table, to leave alone what he cannot read.
CREATE FUNCTION {schema}.has_data_keys(of text) RETURNS bool LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN EXISTS (SELECT FROM {schema}.data_keys k WHERE k.instance_id = of);
END $$;

-- For each flush: in the statement itself it would be planned each time.
CREATE FUNCTION {schema}.has_data_key(of text, key text) RETURNS bool LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN key = '' OR EXISTS (SELECT FROM {schema}.data_keys k WHERE k.instance_id = of AND k.id = key);
END $$;

-- For a flush that puts what is not there yet: whether an instance has the key under which a row is, so that it can be read unless somebody has changed it.
CREATE FUNCTION {schema}.sealed_by_data_key(of text, sealed text) RETURNS bool LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN EXISTS (SELECT FROM {schema}.data_keys k WHERE k.instance_id = of AND starts_with(sealed, k.id));
END $$;

-- As before, and how many of the keys are encrypted.
CREATE OR REPLACE VIEW {schema}.instance_sizes AS
SELECT instance_id, key_type, count(*) AS keys, sum(pg_column_size(data))::bigint AS bytes, max(updated_at) AS last_write,
       count(*) FILTER (WHERE data ? 'enc') AS encrypted
FROM {schema}.auth_keys GROUP BY instance_id, key_type;

-- With which data keys an instance's values are encrypted, and with what these are wrapped: no key, neither plain nor wrapped.
CREATE VIEW {schema}.encryption AS
SELECT instance_id, id, wrapping_key, created_at, wrapped_at, complete FROM {schema}.data_keys;
