-- A library that knows version 1 may go on using the schema: its writes count as those of an outsider.
INSERT INTO {schema}.schema_info VALUES (5, 1);

-- The audit trail: what has happened to each instance, one entry after the other, each of which seals the one before it. Nothing refers to it and nothing
-- deletes from it, so it outlives what it tells of.
CREATE TABLE {schema}.audit (
    instance_id text COLLATE "C" NOT NULL,
    n           bigint NOT NULL,      -- counts the instance's entries
    at          timestamptz NOT NULL,
    event       text COLLATE "C" NOT NULL,
    epoch       bigint,
    seq         bigint,
    owner       text NOT NULL,        -- as the process that has the instance is called
    role        text NOT NULL,        -- who was connected
    detail      text NOT NULL,
    keys        int NOT NULL,         -- how many rows of audit_keys belong to it
    digest      bytea NOT NULL,       -- of these
    hash        bytea NOT NULL,       -- of all this and of the hash before
    PRIMARY KEY (instance_id, n, at)
) PARTITION BY RANGE (at);
CREATE INDEX ON {schema}.audit (at);

-- Which keys a flush has changed: never a value, only what it hashes to, as sha256(convert_to(data::text, 'UTF8')).
CREATE TABLE {schema}.audit_keys (
    instance_id text COLLATE "C" NOT NULL,
    n           bigint NOT NULL,
    at          timestamptz NOT NULL,
    key_type    text COLLATE "C" NOT NULL,
    key_id      text COLLATE "C" NOT NULL,
    op          text COLLATE "C" NOT NULL, -- put, put_if_absent, delete
    size        int,
    sha256      bytea,
    PRIMARY KEY (instance_id, n, key_type, key_id, at)
) PARTITION BY RANGE (at);

CREATE TABLE {schema}.audit_default PARTITION OF {schema}.audit DEFAULT; -- so that no flush fails because a partition is missing
CREATE TABLE {schema}.audit_keys_default PARTITION OF {schema}.audit_keys DEFAULT;

-- Where each instance's trail ends, and where it begins if what was before has been dropped.
CREATE TABLE {schema}.audit_heads (instance_id text COLLATE "C" PRIMARY KEY, n bigint NOT NULL, hash bytea NOT NULL) WITH (fillfactor = 50);
CREATE TABLE {schema}.audit_anchors (
    instance_id text COLLATE "C" NOT NULL, n bigint NOT NULL, hash bytea NOT NULL, at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (instance_id, n)
);

-- What is hashed: each text with its length before it, so that no two lists of texts read the same.
CREATE FUNCTION {schema}.audit_text(VARIADIC texts text[]) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
SELECT convert_to(string_agg(CASE WHEN t IS NULL THEN '-' ELSE octet_length(convert_to(t, 'UTF8')) || ':' || t END || ',', '' ORDER BY i), 'UTF8')
FROM unnest(texts) WITH ORDINALITY AS x (t, i) $$;

-- The one way in. It runs with the rights of who has migrated, so that who uses the library needs no right on these tables.
CREATE FUNCTION {schema}.audit_append(of text, event text, epoch bigint, seq bigint, owner text, detail text,
    types text[] DEFAULT '{}', ids text[] DEFAULT '{}', ops text[] DEFAULT '{}', data text[] DEFAULT '{}')
RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    head   record;
    moment timestamptz;
    digest bytea := '';
    sealed bytea;
BEGIN
    INSERT INTO {schema}.audit_heads AS h VALUES (of, 0, '') ON CONFLICT (instance_id) DO NOTHING;
    SELECT h.n + 1 AS n, h.hash INTO head FROM {schema}.audit_heads h WHERE h.instance_id = of FOR UPDATE;
    moment := clock_timestamp(); -- now that nobody else appends
    IF cardinality(types) > 0 THEN
        WITH written AS (
            INSERT INTO {schema}.audit_keys
            SELECT of, head.n, moment, k.key_type, k.key_id, k.op, octet_length(stored.t), sha256(convert_to(stored.t, 'UTF8'))
            FROM unnest(types, ids, ops, data) AS k (key_type, key_id, op, data), LATERAL (SELECT nullif(k.data, '')::jsonb::text AS t) AS stored
            RETURNING key_type, key_id, op, size, sha256)
        SELECT sha256(string_agg({schema}.audit_text(w.key_type, w.key_id, w.op, w.size::text, encode(w.sha256, 'hex')), '' ORDER BY w.key_type, w.key_id))
        INTO digest FROM written w;
    END IF;
    sealed := sha256(head.hash || {schema}.audit_text(of, head.n::text, (extract(epoch FROM moment) * 1000000)::bigint::text, event, epoch::text, seq::text,
        owner, session_user::text, detail, cardinality(types)::text, encode(digest, 'hex')));
    INSERT INTO {schema}.audit VALUES (of, head.n, moment, event, epoch, seq, owner, session_user, detail, cardinality(types), digest, sealed);
    UPDATE {schema}.audit_heads h SET n = head.n, hash = sealed WHERE h.instance_id = of;
    RETURN head.n;
END $$;
REVOKE EXECUTE ON FUNCTION {schema}.audit_append FROM PUBLIC;

-- What a flush has changed, for those who want to know all.
CREATE FUNCTION {schema}.audit_flush(of text, epoch bigint, seq bigint, types text[], ids text[], ops smallint[], data text[])
RETURNS bigint LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
SELECT {schema}.audit_append(of, 'flushed', epoch, seq, (SELECT i.owner FROM {schema}.instances i WHERE i.id = of), '', types, ids,
    (SELECT array_agg(('{put,put_if_absent,delete}'::text[])[o + 1] ORDER BY k) FROM unnest(ops) WITH ORDINALITY AS x (o, k)), data) $$;

-- What the library does beside flushes.
CREATE FUNCTION {schema}.audit_note(of text, event text, detail text)
RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    i record;
BEGIN
    IF event NOT IN ('set_aside', 'rotated', 'imported', 'exported', 'erased') THEN
        RAISE 'no such event' USING ERRCODE = '22023';
    END IF;
    SELECT * INTO i FROM {schema}.instances WHERE id = of;
    RETURN {schema}.audit_append(of, event, i.epoch, i.seq, coalesce(i.owner, ''), detail);
END $$;

-- Whether the library writes, or an outsider. It is a mark and no lock: who wants to deceive can set it, too.
CREATE FUNCTION {schema}.audit_writer() RETURNS text LANGUAGE sql STABLE AS $$
SELECT CASE WHEN current_setting('pgstore.writer', true) = 'on' THEN '' ELSE 'not by the library' END $$;

-- The life of an instance.
CREATE FUNCTION {schema}.audit_life() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    who record := CASE TG_OP WHEN 'DELETE' THEN old ELSE new END;
    event text;
    detail text := '';
BEGIN
    IF TG_OP = 'INSERT' THEN
        event := 'paired';
        detail := new.jid;
    ELSIF TG_OP = 'DELETE' THEN
        event := 'deleted';
        detail := {schema}.audit_writer();
    ELSIF new.seq < old.seq OR new.epoch < old.epoch OR new.step_through < old.step_through OR new.abandon_through < old.abandon_through OR new.id <> old.id THEN
        event := 'lowered'; -- which the library never does
        detail := format('epoch %s, seq %s, step_through %s, abandon_through %s', old.epoch, old.seq, old.step_through, old.abandon_through);
    ELSIF new.epoch <> old.epoch THEN
        event := CASE WHEN new.abandon_through > old.abandon_through THEN 'rewound' ELSE 'taken' END;
        detail := CASE WHEN old.clean_at_epoch = old.epoch THEN 'after a release' ELSE 'by force, from ' || old.owner END
            || CASE WHEN new.timeline <> old.timeline THEN ', timeline ' || old.timeline || ' to ' || new.timeline ELSE '' END;
    ELSE
        event := 'released';
    END IF;
    PERFORM {schema}.audit_append(who.id, event, who.epoch, who.seq, who.owner, detail);
    RETURN NULL;
END $$;
CREATE TRIGGER audit_begin AFTER INSERT OR DELETE ON {schema}.instances FOR EACH ROW EXECUTE FUNCTION {schema}.audit_life();
CREATE TRIGGER audit_change AFTER UPDATE ON {schema}.instances FOR EACH ROW
    WHEN (new.epoch <> old.epoch OR new.clean_at_epoch <> old.clean_at_epoch AND new.clean_at_epoch = new.epoch OR new.seq < old.seq
        OR new.step_through < old.step_through OR new.abandon_through < old.abandon_through OR new.id <> old.id)
    EXECUTE FUNCTION {schema}.audit_life();

-- Credentials, when they change after the pairing.
CREATE FUNCTION {schema}.audit_credentials() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    i record;
BEGIN
    SELECT * INTO i FROM {schema}.instances WHERE id = new.instance_id;
    PERFORM {schema}.audit_append(new.instance_id, 'credentials', i.epoch, new.seq, coalesce(i.owner, ''), {schema}.audit_writer());
    RETURN NULL;
END $$;
CREATE TRIGGER audit_credentials AFTER UPDATE ON {schema}.auth_keys FOR EACH ROW
    WHEN (new.key_type = 'creds' AND new.key_id = 'device' AND current_setting('pgstore.writer', true) = 'on') EXECUTE FUNCTION {schema}.audit_credentials();

-- What anybody else does to a key. What goes with its instance is told with that.
CREATE FUNCTION {schema}.audit_outsider() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    key record := CASE TG_OP WHEN 'DELETE' THEN old ELSE new END;
    i   record;
BEGIN
    SELECT * INTO i FROM {schema}.instances WHERE id = key.instance_id;
    PERFORM {schema}.audit_append(key.instance_id, 'outsider', i.epoch, key.seq, coalesce(i.owner, ''), lower(TG_OP), ARRAY[key.key_type], ARRAY[key.key_id],
        ARRAY[CASE TG_OP WHEN 'DELETE' THEN 'delete' ELSE 'put' END], ARRAY[CASE TG_OP WHEN 'DELETE' THEN '' ELSE key.data::text END]);
    RETURN NULL;
END $$;
CREATE TRIGGER audit_outsider AFTER INSERT OR UPDATE OR DELETE ON {schema}.auth_keys FOR EACH ROW
    WHEN (current_setting('pgstore.writer', true) IS DISTINCT FROM 'on' AND pg_trigger_depth() = 0) EXECUTE FUNCTION {schema}.audit_outsider();

-- Keys whose row is not what the trail told of them last. It shows no value, so that who verifies needs no right to read one. A row that a flush wrote of
-- which the trail does not tell the keys is newer: of that nothing is known, nor of one that is missing if there was such a flush since.
CREATE FUNCTION {schema}.audit_differences(of text) RETURNS TABLE (n bigint, key_type text, key_id text, what text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
SELECT told.n, told.key_type, told.key_id,
    CASE WHEN told.op = 'delete' THEN 'it was deleted, and is there' WHEN k.data IS NULL THEN 'its row is missing' ELSE 'its row is not what was written' END
FROM (SELECT DISTINCT ON (w.key_type, w.key_id) w.*, a.seq FROM {schema}.audit_keys w
    JOIN {schema}.audit a ON a.instance_id = w.instance_id AND a.n = w.n AND a.at = w.at
    WHERE w.instance_id = of ORDER BY w.key_type, w.key_id, w.n DESC) AS told
JOIN {schema}.instances i ON i.id = told.instance_id
LEFT JOIN {schema}.auth_keys k ON k.instance_id = told.instance_id AND k.key_type = told.key_type AND k.key_id = told.key_id
WHERE told.op <> 'put_if_absent' AND CASE WHEN k.data IS NULL
    THEN told.op = 'put' AND i.seq - told.seq = (SELECT count(*) FROM {schema}.audit f WHERE f.instance_id = of AND f.event = 'flushed' AND f.seq > told.seq)
    ELSE k.seq <= told.seq AND (told.op = 'delete' OR sha256(convert_to(k.data::text, 'UTF8')) <> told.sha256) END $$;

-- Partitions are months. They are made ahead, by anybody, and dropped only by who owns them.
CREATE FUNCTION {schema}.audit_partitions() RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
DECLARE
    month timestamptz;
    of text;
BEGIN
    FOR month IN SELECT date_trunc('month', now()) + make_interval(months => m) FROM generate_series(0, 2) AS m LOOP
        FOREACH of IN ARRAY '{audit,audit_keys}'::text[] LOOP
            IF to_regclass(format('{schema}.%I', of || to_char(month, '_YYYYMM'))) IS NULL THEN
                BEGIN
                    EXECUTE format('CREATE TABLE IF NOT EXISTS {schema}.%I PARTITION OF {schema}.%I FOR VALUES FROM (%L) TO (%L)',
                        of || to_char(month, '_YYYYMM'), of, month, month + interval '1 month');
                EXCEPTION WHEN check_violation THEN -- the default partition has some of that month, and keeps them
                    RAISE WARNING 'pgstore: no partition of % for %', of, month;
                END;
            END IF;
        END LOOP;
    END LOOP;
END $$;
SELECT {schema}.audit_partitions();

-- Drops the months that ended before a moment, and notes up to where each instance's trail was there.
CREATE FUNCTION {schema}.audit_drop(before timestamptz) RETURNS int LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
DECLARE
    part record;
    dropped int := 0;
BEGIN
    FOR part IN
        SELECT c.oid::regclass AS name, p.relname AS of FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid JOIN pg_class p ON p.oid = inhparent
        WHERE p.oid IN ('{schema}.audit'::regclass, '{schema}.audit_keys'::regclass) AND c.relname ~ '_[0-9]{6}$'
          AND to_timestamp(right(c.relname, 6), 'YYYYMM') + interval '1 month' <= before
        ORDER BY c.relname
    LOOP
        IF part.of = 'audit' THEN
            EXECUTE format('INSERT INTO {schema}.audit_anchors (instance_id, n, hash) SELECT DISTINCT ON (instance_id) instance_id, n, hash FROM %s
                ORDER BY instance_id, n DESC ON CONFLICT DO NOTHING', part.name);
        END IF;
        EXECUTE format('DROP TABLE %s', part.name);
        dropped := dropped + 1;
    END LOOP;
    RETURN dropped;
END $$;
REVOKE EXECUTE ON FUNCTION {schema}.audit_drop FROM PUBLIC;
